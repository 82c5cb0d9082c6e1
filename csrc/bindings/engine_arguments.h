/// Conversions that the engine's bindings share: token lists, masks, and Python objects that C++ threads may let go of.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/sampler.h"

namespace sterna::bindings {

/// Lets go of a Python object on any thread; at the interpreter's end it is left alone.
struct PyDeleter {
  void operator()(pybind11::object* object) const {
    if (Py_IsInitialized() == 0) return;
    const pybind11::gil_scoped_acquire gil;
    delete object;
  }
};
inline std::shared_ptr<pybind11::object> shared_object(pybind11::object object) {
  return {new pybind11::object(std::move(object)), PyDeleter{}};
}

/// A list of int or an integer array. ArgumentError for anything else, and for numbers beyond 32 bits.
std::vector<std::int32_t> to_tokens(const pybind11::object& tokens, const char* name);

/// None, a callable, or an array of words; see MaskLike in _core.pyi.
Mask to_mask(const pybind11::object& mask);

/// [n], float32; ArgumentError otherwise.
using Floats = pybind11::array_t<float, pybind11::array::c_style>;
std::span<const float> to_row(const Floats& row, std::int32_t vocab_size);

}  // namespace sterna::bindings
