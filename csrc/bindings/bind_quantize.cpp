/// Quantisation of floats, for `sterna quantize` and `sterna convert`.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>

#include "base/error.h"
#include "bindings/bindings.h"
#include "quant/quantize.h"

namespace py = pybind11;

namespace sterna::bindings {
namespace {

const Format& format_by_name(const std::string& name) {
  const Format* format = find_format(std::string_view(name));
  if (format == nullptr) throw ArgumentError("format: there is no \"" + name + "\"");
  return *format;
}

/// The floats of a C-contiguous array of float32; nothing is converted behind the caller's back.
std::span<const float> floats_of(const py::array& array, const char* name) {
  if (!py::isinstance<py::array_t<float>>(array) || (array.flags() & py::array::c_style) == 0) {
    throw ArgumentError(std::string(name) + ": must be a C-contiguous array of float32");
  }
  return {static_cast<const float*>(array.data()), static_cast<std::size_t>(array.size())};
}

py::array quantize_array(const py::array& x, const std::string& name, const std::optional<py::array>& importance,
                         const std::optional<py::array>& out, const std::string& what, std::uint64_t first) {
  const Format& format = format_by_name(name);
  const std::span<const float> weights = floats_of(x, "x");
  if (x.ndim() < 1) throw ArgumentError("x: must have at least one dimension");
  const auto k = static_cast<std::uint64_t>(x.shape(x.ndim() - 1));
  const std::span<const float> by_importance =
      importance ? floats_of(*importance, "importance") : std::span<const float>();
  const std::uint64_t blocks = weights.size() / format.block_size;
  py::array result = out ? *out : py::array(py::array_t<std::uint8_t>(blocks * format.block_bytes));
  if (!py::isinstance<py::array_t<std::uint8_t>>(result) || (result.flags() & py::array::c_style) == 0 ||
      !result.writeable()) {
    throw ArgumentError("out: must be a writeable C-contiguous array of uint8");
  }
  const std::span<std::uint8_t> bytes(static_cast<std::uint8_t*>(result.mutable_data()),
                                      static_cast<std::size_t>(result.size()));
  {
    const GilRelease released;
    quantize(format, weights, k, by_importance, bytes, what, first);
  }
  return result;
}

}  // namespace

void bind_quantize(py::module_& m) {
  m.def("quantize", &quantize_array, py::arg("x"), py::arg("format"), py::arg("importance") = py::none(),
        py::arg("out") = py::none(), py::arg("what") = "weights", py::arg("first") = 0);
  m.def(
      "can_quantize", [](const std::string& name) { return can_quantize(format_by_name(name).id); }, py::arg("format"));
  m.def(
      "takes_importance", [](const std::string& name) { return takes_importance(format_by_name(name).id); },
      py::arg("format"));
}

}  // namespace sterna::bindings
