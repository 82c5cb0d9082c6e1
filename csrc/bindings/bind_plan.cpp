#include "bindings/bindings.h"

namespace sterna::bindings {

void bind_plan(pybind11::module_&) {}

}  // namespace sterna::bindings
