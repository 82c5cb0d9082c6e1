#include "bindings/bindings.h"

namespace sterna::bindings {

void bind_engine(pybind11::module_&) {}

}  // namespace sterna::bindings
