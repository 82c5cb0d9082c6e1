#include "bindings/bindings.h"

namespace sterna::bindings {

void bind_program(pybind11::module_&) {}

}  // namespace sterna::bindings
