/// Formats: the table, and decoding of whole tensors for tests and tools. Models never take this way: they are packed
/// by the plan.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "gguf/reader.h"
#include "quant/format.h"

namespace py = pybind11;

namespace sterna::bindings {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

std::string_view scale_kind_name(ScaleKind kind) {
  switch (kind) {
    case ScaleKind::kNone:
      return "none";
    case ScaleKind::kBlock:
      return "block";
    case ScaleKind::kSuper:
      return "super";
  }
  return "";
}

const Format& format_by_name(const std::string& name) {
  const Format* format = find_format(std::string_view(name));
  if (format == nullptr) throw ArgumentError("format: there is no \"" + name + "\"");
  return *format;
}

/// Blocks of a whole tensor.
py::ssize_t count_blocks(const Bytes& data, const Format& format) {
  const py::ssize_t bytes = data.size() - format.tail_bytes;
  if (bytes < 0 || bytes % format.block_bytes != 0) {
    const std::string tail = format.tail_bytes == 0 ? "" : " and " + std::to_string(format.tail_bytes) + " behind them";
    throw ArgumentError("data: " + std::to_string(data.size()) + " bytes are not whole blocks of " +
                        std::string(format.name) + " (" + std::to_string(format.block_bytes) + " bytes each" + tail +
                        ")");
  }
  return bytes / format.block_bytes;
}

/// The number that multiplies all of a tensor: in its tail, or one.
float tensor_scale(const Bytes& data, const Format& format) {
  if (format.tail_bytes == 0) return 1.0f;
  return load_little_endian<float>(data.data() + data.size() - format.tail_bytes);
}

py::array_t<float> dequantize(const Bytes& data, const std::string& name) {
  const Format& format = format_by_name(name);
  if (format.dequantize == nullptr) throw ArgumentError("format: " + name + " is not a format of weights");
  const py::ssize_t blocks = count_blocks(data, format);
  py::array_t<float> result(blocks * format.block_size);
  const std::uint8_t* source = data.data();
  const float scale = tensor_scale(data, format);
  float* out = result.mutable_data();
  const GilRelease release;
  for (py::ssize_t i = 0; i < blocks; ++i) {
    format.dequantize(source + i * format.block_bytes, out + i * format.block_size);
  }
  if (format.tail_bytes != 0) {
    for (py::ssize_t i = 0; i < blocks * format.block_size; ++i) out[i] *= scale;
  }
  return result;
}

py::dict decode_blocks(const Bytes& data, const std::string& name) {
  const Format& format = format_by_name(name);
  if (format.decode == nullptr) throw ArgumentError("format: " + name + " is not quantised");
  const py::ssize_t blocks = count_blocks(data, format);
  const py::ssize_t groups = format.block_size / format.group_size;
  const py::ssize_t scales = format.scales == ScaleKind::kSuper ? 1 : groups;
  const py::ssize_t group_scales = format.scales == ScaleKind::kSuper ? groups : 0;
  py::array_t<std::int8_t> codes({blocks, static_cast<py::ssize_t>(format.block_size)});
  py::array_t<float> scale({blocks, scales});
  py::array_t<float> min({blocks, scales});
  py::array_t<std::int16_t> group_scale({blocks, group_scales});
  py::array_t<std::int16_t> group_min({blocks, group_scales});
  const std::uint8_t* source = data.data();
  std::int8_t* codes_out = codes.mutable_data();
  const float of_all = tensor_scale(data, format);
  float* scale_out = scale.mutable_data();
  float* min_out = min.mutable_data();
  std::int16_t* group_scale_out = group_scale.mutable_data();
  std::int16_t* group_min_out = group_min.mutable_data();
  {
    const GilRelease release;
    DecodedBlock decoded;
    for (py::ssize_t i = 0; i < blocks; ++i) {
      format.decode(source + i * format.block_bytes, decoded);
      codes_out = std::copy_n(decoded.codes, format.block_size, codes_out);
      for (py::ssize_t s = 0; s < scales; ++s) *scale_out++ = of_all * decoded.scale[s];
      min_out = std::copy_n(decoded.min, scales, min_out);
      group_scale_out = std::copy_n(decoded.group_scale, group_scales, group_scale_out);
      group_min_out = std::copy_n(decoded.group_min, group_scales, group_min_out);
    }
  }
  py::dict result;
  result["codes"] = codes;
  result["scale"] = scale;
  result["min"] = min;
  result["group_scale"] = group_scale;
  result["group_min"] = group_min;
  return result;
}

}  // namespace

void bind_quant(py::module_& m) {
  py::class_<Format>(m, "FormatInfo")
      .def_property_readonly("id", [](const Format& f) { return static_cast<std::uint32_t>(f.id); })
      .def_property_readonly("name", [](const Format& f) { return f.name; })
      .def_property_readonly("block_size", [](const Format& f) { return f.block_size; })
      .def_property_readonly("block_bytes", [](const Format& f) { return f.block_bytes; })
      .def_property_readonly("scales", [](const Format& f) { return scale_kind_name(f.scales); })
      .def_property_readonly("group_size", [](const Format& f) { return f.group_size; })
      .def_property_readonly("has_min", [](const Format& f) { return f.has_min; })
      .def_property_readonly("tail_bytes", [](const Format& f) { return f.tail_bytes; })
      .def_property_readonly("is_ternary", [](const Format& f) { return f.is_ternary; })
      .def("__repr__", [](const Format& f) { return "<FormatInfo " + std::string(f.name) + ">"; });
  m.def("formats", [] { return std::vector<Format>(formats().begin(), formats().end()); });
  m.def("dequantize", &dequantize, py::arg("data"), py::arg("format"));
  m.def("decode_blocks", &decode_blocks, py::arg("data"), py::arg("format"));
}

}  // namespace sterna::bindings
