/// One function per area of the core; module.cpp calls them in order of dependence. And what they share.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

namespace sterna::bindings {

/// Gives the GIL away for a while. Python ends a daemon thread that waits for it when the interpreter has ended, by
/// unwinding its stack: through destructors and exceptions on their way, which aborts the process. So the thread stays
/// here instead until the process ends as well, as in later versions of Python.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      while (true) pause();
    }
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

void bind_errors(pybind11::module_& m);
void bind_gguf(pybind11::module_& m);
void bind_quant(pybind11::module_& m);
void bind_quantize(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_plan(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);
void bind_machine(pybind11::module_& m);
void bind_engine(pybind11::module_& m);

}  // namespace sterna::bindings
