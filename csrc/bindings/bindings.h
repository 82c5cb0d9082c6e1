/// One function per area of the core; module.cpp calls them in order of dependence. And what they share.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

namespace sterna::bindings {

/// Gives the GIL away for a while. A daemon thread that waits for it when the interpreter exits is ended there, by
/// unwinding its stack: pybind11's guard does not let that through, and the process would abort.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() noexcept(false) { PyEval_RestoreThread(state_); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

/// Calls fn without the GIL, from a destructor. That must not be unwound: when the interpreter has ended meanwhile, the
/// thread stays here until the process ends as well.
template <class Fn>
void destroy_without_gil(Fn fn) {
  if (PyGILState_Check() == 0) {
    fn();
    return;
  }
  try {
    const GilRelease release;
    fn();
  } catch (abi::__forced_unwind&) {
    while (true) pause();
  }
}

void bind_errors(pybind11::module_& m);
void bind_gguf(pybind11::module_& m);
void bind_quant(pybind11::module_& m);
void bind_quantize(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_plan(pybind11::module_& m);
void bind_machine(pybind11::module_& m);
void bind_engine(pybind11::module_& m);

}  // namespace sterna::bindings
