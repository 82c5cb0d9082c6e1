#include "bindings/bindings.h"

namespace sterna::bindings {

void bind_quant(pybind11::module_&) {}

}  // namespace sterna::bindings
