/// Translates the core's exceptions to the classes of python/sterna/errors.py.
#include "base/error.h"
#include "bindings/bindings.h"

namespace py = pybind11;

namespace sterna::bindings {
namespace {

void raise(const char* name, const py::args& arguments) {
  const py::object type = py::module_::import("sterna.errors").attr(name);
  const py::object error = type(*arguments);
  PyErr_SetObject(type.ptr(), error.ptr());
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const ModelFormatError& e) {
      raise("ModelFormatError", py::make_tuple(e.what(), e.file(), e.field(), e.byte_offset()));
    } catch (const FileError& e) {
      raise("FileError", py::make_tuple(e.what(), e.file(), e.error_number()));
    } catch (const UnsupportedModelError& e) {
      raise("UnsupportedModelError", py::make_tuple(e.what()));
    } catch (const ArgumentError& e) {
      raise("ArgumentError", py::make_tuple(e.what()));
    } catch (const ContextOverflowError& e) {
      raise("ContextOverflowError", py::make_tuple(e.what()));
    } catch (const MemoryBudgetError& e) {
      raise("MemoryBudgetError", py::make_tuple(e.what()));
    } catch (const DeviceError& e) {
      raise("DeviceError", py::make_tuple(e.what()));
    } catch (const NumericError& e) {
      raise("NumericError", py::make_tuple(e.what()));
    } catch (const QueueFullError& e) {
      raise("QueueFullError", py::make_tuple(e.what()));
    } catch (const DeadlineError& e) {
      raise("DeadlineError", py::make_tuple(e.what()));
    } catch (const Error& e) {
      raise("SternaError", py::make_tuple(e.what()));
    }
  });
}

}  // namespace sterna::bindings
