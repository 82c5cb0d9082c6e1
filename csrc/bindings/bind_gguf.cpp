/// The GGUF reader in Python: class Gguf. Values become Python numbers, strings and numpy arrays of the file's own
/// types.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "base/error.h"
#include "bindings/bindings.h"
#include "gguf/gguf.h"
#include "gguf/ternary_scan.h"
#include "gguf/text.h"

namespace py = pybind11;

namespace sterna::bindings {
namespace {

/// Bytes that are usually UTF-8; what is not becomes U+FFFD.
py::str to_str(std::string_view text) {
  PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace");
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(decoded);
}

py::bytes to_bytes(std::string_view text) { return {text.data(), text.size()}; }

/// A str, bytes or os.PathLike as the file system spells it.
std::string to_path(const py::object& path) {
  PyObject* encoded = nullptr;
  if (PyUnicode_FSConverter(path.ptr(), &encoded) == 0) throw py::error_already_set();
  return py::reinterpret_steal<py::bytes>(encoded);
}

py::str from_path(const std::string& path) {
  PyObject* decoded = PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<py::ssize_t>(path.size()));
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(decoded);
}

I2sOrder i2s_order_from(const std::string& name) {
  if (name == "x86") return I2sOrder::kX86;
  if (name == "arm") return I2sOrder::kArm;
  throw ArgumentError("i2s_order is \"" + printable(name) + "\", must be \"x86\" or \"arm\"");
}

py::dtype to_dtype(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
      return py::dtype("<u1");
    case ValueType::kInt8:
      return py::dtype("<i1");
    case ValueType::kUint16:
      return py::dtype("<u2");
    case ValueType::kInt16:
      return py::dtype("<i2");
    case ValueType::kUint32:
      return py::dtype("<u4");
    case ValueType::kInt32:
      return py::dtype("<i4");
    case ValueType::kUint64:
      return py::dtype("<u8");
    case ValueType::kInt64:
      return py::dtype("<i8");
    case ValueType::kFloat32:
      return py::dtype("<f4");
    case ValueType::kFloat64:
      return py::dtype("<f8");
    case ValueType::kBool:
      return py::dtype("?");
    default:
      throw ArgumentError("no array of numbers");
  }
}

template <class Convert>
py::list to_list(const StringArray& strings, Convert convert) {
  py::list out(strings.size());
  for (std::size_t i = 0; i < strings.size(); ++i) out[i] = convert(strings[i]);
  return out;
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::object value_of(const Metadata& m, const std::string& key) {
  switch (*m.type_of(key)) {
    case ValueType::kString:
      return to_str(m.get_string(key));
    case ValueType::kBool:
      return py::bool_(m.get_bool(key));
    case ValueType::kFloat32:
    case ValueType::kFloat64:
      return py::float_(m.find_any_float(key).value());
    case ValueType::kUint64:
      return py::int_(m.get_u64(key));
    case ValueType::kArray: {
      if (m.element_type_of(key) == ValueType::kString) return to_list(m.get_strings(key), to_str);
      const NumberArray numbers = m.find_numbers(key).value();
      return py::array(to_dtype(numbers.type), static_cast<py::ssize_t>(numbers.count), numbers.bytes.data());
    }
    default:
      return py::int_(m.get_i64(key));
  }
}

std::string type_text(const Metadata& m, const std::string& key) {
  const auto type = m.type_of(key);
  if (!type) m.fail(key, "is missing");
  const std::string name(value_type_name(*type));
  return *type == ValueType::kArray ? name + "[" + std::string(value_type_name(*m.element_type_of(key))) + "]" : name;
}

/// `count` bytes from `offset` on; without a count up to the tensor's end.
py::array read_tensor(const GgufModel& model, const std::string& name, std::uint64_t offset,
                      std::optional<std::uint64_t> count) {
  const TensorInfo& tensor = model.require(name);
  const std::uint64_t rest = offset < tensor.bytes ? tensor.bytes - offset : 0;
  if (offset > tensor.bytes || count.value_or(rest) > rest) {
    throw ArgumentError("tensor \"" + name + "\" has " + std::to_string(tensor.bytes) + " bytes, asked for are " +
                        std::to_string(count.value_or(rest)) + " from byte " + std::to_string(offset));
  }
  py::array_t<std::uint8_t> out(static_cast<py::ssize_t>(count.value_or(rest)));
  const std::span<std::uint8_t> bytes(out.mutable_data(), static_cast<std::size_t>(out.size()));
  {
    const GilRelease released;
    model.read(tensor, offset, bytes);
  }
  return out;
}

py::object scan(const GgufModel& model, const std::string& name) {
  const TensorInfo& tensor = model.require(name);
  if (!is_scannable(*tensor.format)) return py::none();
  TernaryScan found;
  {
    const GilRelease released;
    found = scan_ternary(model, tensor);
  }
  return py::cast(found);
}

py::tuple shape_of(const TensorInfo& tensor) {
  py::tuple shape(tensor.shape.size());
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) shape[i] = tensor.shape[i];
  return shape;
}

}  // namespace

void bind_gguf(py::module_& m) {
  using Key = const std::string&;
  using Length = Metadata::Length;

  py::class_<TensorInfo>(m, "TensorInfo")
      .def_property_readonly("name", [](const TensorInfo& t) { return to_str(t.name); })
      .def_property_readonly("shape", shape_of)
      .def_property_readonly("format", [](const TensorInfo& t) { return to_str(t.format->name); })
      .def_readonly("bytes", &TensorInfo::bytes)
      .def_readonly("offset", &TensorInfo::offset)
      .def_readonly("file", &TensorInfo::file)
      .def_readonly("entry_offset", &TensorInfo::entry_offset)
      .def("__repr__", [](const TensorInfo& t) {
        return py::str("TensorInfo({!r}, {}, {})").format(to_str(t.name), shape_of(t), to_str(t.format->name));
      });

  py::class_<TernaryScan>(m, "TernaryScan")
      .def_readonly("codes", &TernaryScan::codes)
      .def_readonly("first_fourth", &TernaryScan::first_fourth)
      .def_readonly("unused_bytes", &TernaryScan::unused_bytes)
      .def_readonly("least_scale", &TernaryScan::least_scale)
      .def_readonly("largest_scale", &TernaryScan::largest_scale)
      .def_readonly("bad_scales", &TernaryScan::bad_scales)
      .def_readonly("first_bad_block", &TernaryScan::first_bad_block)
      .def_readonly("one_scale", &TernaryScan::one_scale);

  py::class_<GgufModel, std::shared_ptr<GgufModel>>(m, "Gguf")
      .def(py::init([](const py::object& path, const std::string& i2s_order) {
             const std::string name = to_path(path);
             const I2sOrder order = i2s_order_from(i2s_order);
             const GilRelease released;
             return std::make_shared<GgufModel>(GgufModel::open(name, order));
           }),
           py::arg("path"), py::kw_only(), py::arg("i2s_order") = "x86")
      .def_property_readonly("path", [](const GgufModel& g) { return from_path(g.path()); })
      .def_property_readonly("version", &GgufModel::version)
      .def_property_readonly("alignment", &GgufModel::alignment)
      .def_property_readonly("file_bytes", &GgufModel::file_bytes)
      .def_property_readonly("files",
                             [](const GgufModel& g) {
                               py::list out;
                               for (const File& file : g.files()) out.append(from_path(file.path()));
                               return out;
                             })
      .def("keys",
           [](const GgufModel& g) {
             py::list out(g.metadata().size());
             for (std::size_t i = 0; i < g.metadata().size(); ++i) out[i] = to_str(g.metadata().key(i));
             return out;
           })
      .def("__contains__", [](const GgufModel& g, Key key) { return g.metadata().contains(key); })
      .def(
          "type_of", [](const GgufModel& g, Key key) { return type_text(g.metadata(), key); }, py::arg("key"))
      .def(
          "offset_of", [](const GgufModel& g, Key key) { return g.metadata().offset_of(key); }, py::arg("key"))
      .def(
          "get",
          [](const GgufModel& g, Key key, const py::object& missing) {
            return g.metadata().contains(key) ? value_of(g.metadata(), key) : missing;
          },
          py::arg("key"), py::arg("default") = py::none())
      .def(
          "array_length", [](const GgufModel& g, Key key) { return g.metadata().array_length(key); }, py::arg("key"))
      .def(
          "get_bytes", [](const GgufModel& g, Key key) { return to_bytes(g.metadata().get_string(key)); },
          py::arg("key"))
      .def(
          "get_bytes_list",
          [](const GgufModel& g, Key key, Length length) {
            return to_list(g.metadata().get_strings(key, length), to_bytes);
          },
          py::arg("key"), py::arg("length") = py::none())
      .def(
          "string_array_at",
          [](const GgufModel& g, Key key, std::uint64_t index) {
            const StringArray strings = g.metadata().get_strings(key);
            if (index >= strings.size()) {
              throw ArgumentError("element " + std::to_string(index) + " of \"" + printable(key) + "\", which has " +
                                  std::to_string(strings.size()));
            }
            return to_bytes(strings[static_cast<std::size_t>(index)]);
          },
          py::arg("key"), py::arg("index"))
      .def(
          "number_array",
          [](const GgufModel& g, Key key) {
            const auto numbers = g.metadata().find_numbers(key);
            if (!numbers) g.metadata().fail(key, "is missing");
            const auto* data = reinterpret_cast<const char*>(numbers->bytes.data());
            return py::make_tuple(std::string(value_type_name(numbers->type)), py::bytes(data, numbers->bytes.size()));
          },
          py::arg("key"))
      .def(
          "find_u32", [](const GgufModel& g, Key key) { return g.metadata().find_u32(key); }, py::arg("key"))
      .def(
          "find_u64", [](const GgufModel& g, Key key) { return g.metadata().find_u64(key); }, py::arg("key"))
      .def(
          "find_i64", [](const GgufModel& g, Key key) { return g.metadata().find_i64(key); }, py::arg("key"))
      .def(
          "find_f32", [](const GgufModel& g, Key key) { return g.metadata().find_f32(key); }, py::arg("key"))
      .def(
          "find_bool", [](const GgufModel& g, Key key) { return g.metadata().find_bool(key); }, py::arg("key"))
      .def(
          "find_string",
          [](const GgufModel& g, Key key) -> py::object {
            const auto text = g.metadata().find_string(key);
            return text ? py::object(to_str(*text)) : py::none();
          },
          py::arg("key"))
      .def(
          "get_u32", [](const GgufModel& g, Key key) { return g.metadata().get_u32(key); }, py::arg("key"))
      .def(
          "get_u64", [](const GgufModel& g, Key key) { return g.metadata().get_u64(key); }, py::arg("key"))
      .def(
          "get_i64", [](const GgufModel& g, Key key) { return g.metadata().get_i64(key); }, py::arg("key"))
      .def(
          "get_f32", [](const GgufModel& g, Key key) { return g.metadata().get_f32(key); }, py::arg("key"))
      .def(
          "get_bool", [](const GgufModel& g, Key key) { return g.metadata().get_bool(key); }, py::arg("key"))
      .def(
          "get_string", [](const GgufModel& g, Key key) { return to_str(g.metadata().get_string(key)); },
          py::arg("key"))
      .def(
          "get_strings",
          [](const GgufModel& g, Key key, Length length) {
            return to_list(g.metadata().get_strings(key, length), to_str);
          },
          py::arg("key"), py::arg("length") = py::none())
      .def(
          "get_u32_array",
          [](const GgufModel& g, Key key, Length length) { return to_array(g.metadata().get_u32_array(key, length)); },
          py::arg("key"), py::arg("length") = py::none())
      .def(
          "get_i32_array",
          [](const GgufModel& g, Key key, Length length) { return to_array(g.metadata().get_i32_array(key, length)); },
          py::arg("key"), py::arg("length") = py::none())
      .def(
          "get_f32_array",
          [](const GgufModel& g, Key key, Length length) { return to_array(g.metadata().get_f32_array(key, length)); },
          py::arg("key"), py::arg("length") = py::none())
      .def(
          "fail", [](const GgufModel& g, Key key, Key problem) { g.metadata().fail(key, problem); }, py::arg("key"),
          py::arg("problem"))
      .def_property_readonly("tensors",
                             [](const py::object& self) {
                               const auto tensors = self.cast<const GgufModel&>().tensors();
                               py::list out(tensors.size());
                               for (std::size_t i = 0; i < tensors.size(); ++i) {
                                 out[i] = py::cast(tensors[i], py::return_value_policy::reference_internal, self);
                               }
                               return out;
                             })
      .def("find", &GgufModel::find, py::arg("name"), py::return_value_policy::reference_internal)
      .def("require", &GgufModel::require, py::arg("name"), py::return_value_policy::reference_internal)
      .def("read", read_tensor, py::arg("name"), py::arg("offset") = 0, py::arg("count") = py::none())
      .def(
          "weight_format",
          [](const GgufModel& g, const std::string& name) {
            const TensorInfo& tensor = g.require(name);
            const GilRelease released;
            return std::string(weight_format(g, tensor).name);
          },
          py::arg("name"))
      .def("scan_ternary", scan, py::arg("name"));
}

}  // namespace sterna::bindings
