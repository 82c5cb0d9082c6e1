/// Reads a plan's weights from a GGUF file, and those of adapters from theirs.
#pragma once

#include <charconv>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "gguf/gguf.h"
#include "plan/tensor_source.h"

namespace sterna {

/// Programs name weights without the ".weight" that GGUF files add, and tensors of adapter n "lora.n/" and their name.
class GgufSource final : public TensorSource {
 public:
  explicit GgufSource(std::shared_ptr<const GgufModel> model,
                      std::vector<std::shared_ptr<const GgufModel>> adapters = {})
      : model_(std::move(model)), adapters_(std::move(adapters)) {}

  void read(std::string_view tensor, std::uint64_t offset, std::span<std::uint8_t> out) const override {
    constexpr std::string_view kPrefix = "lora.";
    if (tensor.starts_with(kPrefix)) {
      std::size_t index = 0;
      const char* const end = tensor.data() + tensor.size();
      const auto [next, error] = std::from_chars(tensor.data() + kPrefix.size(), end, index);
      if (error == std::errc() && next != end && *next == '/' && index < adapters_.size()) {
        const GgufModel& adapter = *adapters_[index];
        adapter.read(adapter.require({next + 1, end}), offset, out);
        return;
      }
      throw UnsupportedModelError("there is no tensor " + std::string(tensor));
    }
    const TensorInfo* info = model_->find(std::string(tensor) + ".weight");
    model_->read(info == nullptr ? model_->require(tensor) : *info, offset, out);
  }

 private:
  std::shared_ptr<const GgufModel> model_;
  std::vector<std::shared_ptr<const GgufModel>> adapters_;
};

}  // namespace sterna
