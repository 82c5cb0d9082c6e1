/// The extension module sterna._core. It holds no logic: names, keyword arguments, the GIL, numpy views.
#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  using namespace sterna::bindings;
  m.doc() = "The compiled core of sterna.";
  bind_errors(m);
  bind_gguf(m);
  bind_quant(m);
  bind_quantize(m);
  bind_program(m);
  bind_plan(m);
  bind_cuda(m);
  bind_machine(m);
  bind_engine(m);
}
