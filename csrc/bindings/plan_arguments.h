/// Arguments that the compilers of all backends take from Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gguf/gguf.h"
#include "plan/kinds.h"
#include "plan/plan.h"
#include "plan/tensor_source.h"

namespace sterna::bindings {

/// "f16", "f32" or "q8_0". Throws ArgumentError.
KvType kv_type_from(const std::string& name);

/// `source` is a Gguf, or a dict of tensor bytes; `adapters` are the files that weights lora.0, lora.1, ... are in.
std::unique_ptr<TensorSource> tensor_source(const pybind11::object& source,
                                            const std::vector<std::shared_ptr<GgufModel>>& adapters);

/// (window, bytes of a page) of each pool of the KV cache.
std::vector<std::pair<std::int32_t, std::uint64_t>> pools_of(const PlanMemory& memory);

}  // namespace sterna::bindings
