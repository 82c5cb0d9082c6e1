#include "bindings/bindings.h"

namespace sterna::bindings {

void bind_gguf(pybind11::module_&) {}

}  // namespace sterna::bindings
