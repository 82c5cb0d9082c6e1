/// One function per area of the core; module.cpp calls them in order of dependence.
#pragma once

#include <pybind11/pybind11.h>

namespace sterna::bindings {

void bind_errors(pybind11::module_& m);
void bind_gguf(pybind11::module_& m);
void bind_quant(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_plan(pybind11::module_& m);
void bind_machine(pybind11::module_& m);
void bind_engine(pybind11::module_& m);

}  // namespace sterna::bindings
