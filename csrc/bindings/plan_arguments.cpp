#include "bindings/plan_arguments.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "plan/gguf_source.h"

namespace py = pybind11;

namespace sterna::bindings {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

/// Tensors held by Python: name to the bytes that a file would hold.
class ArraySource final : public TensorSource {
 public:
  explicit ArraySource(const std::map<std::string, Bytes>& arrays) {
    for (const auto& [name, array] : arrays) {
      tensors_.emplace(name, std::vector<std::uint8_t>(array.data(), array.data() + array.size()));
    }
  }

  void read(std::string_view tensor, std::uint64_t offset, std::span<std::uint8_t> out) const override {
    const auto found = tensors_.find(tensor);
    if (found == tensors_.end()) throw UnsupportedModelError("there is no tensor " + std::string(tensor));
    const std::vector<std::uint8_t>& bytes = found->second;
    if (offset > bytes.size() || bytes.size() - offset < out.size()) {
      throw ArgumentError("tensor " + std::string(tensor) + " has " + std::to_string(bytes.size()) + " bytes, " +
                          std::to_string(offset + out.size()) + " are needed");
    }
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
  }

 private:
  std::map<std::string, std::vector<std::uint8_t>, std::less<>> tensors_;
};

}  // namespace

KvType kv_type_from(const std::string& name) {
  if (name == "f16") return KvType::kF16;
  if (name == "f32") return KvType::kF32;
  if (name == "q8_0") return KvType::kQ8_0;
  throw ArgumentError("kv_dtype is \"" + name + "\", must be \"f16\", \"f32\" or \"q8_0\"");
}

std::unique_ptr<TensorSource> tensor_source(const py::object& source,
                                            const std::vector<std::shared_ptr<GgufModel>>& adapters) {
  if (!py::isinstance<GgufModel>(source)) {
    return std::make_unique<ArraySource>(source.cast<std::map<std::string, Bytes>>());
  }
  return std::make_unique<GgufSource>(source.cast<std::shared_ptr<GgufModel>>(),
                                      std::vector<std::shared_ptr<const GgufModel>>(adapters.begin(), adapters.end()));
}

std::vector<std::pair<std::int32_t, std::uint64_t>> pools_of(const PlanMemory& memory) {
  std::vector<std::pair<std::int32_t, std::uint64_t>> pools;
  for (const KvPoolInfo& pool : memory.kv_pools) pools.emplace_back(pool.window, pool.page_bytes);
  return pools;
}

}  // namespace sterna::bindings
