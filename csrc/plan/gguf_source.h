/// Reads a plan's weights from a GGUF file.
#pragma once

#include <memory>
#include <string>

#include "gguf/gguf.h"
#include "plan/tensor_source.h"

namespace sterna {

/// Programs name weights without the ".weight" that GGUF files add.
class GgufSource final : public TensorSource {
 public:
  explicit GgufSource(std::shared_ptr<const GgufModel> model) : model_(std::move(model)) {}

  void read(std::string_view tensor, std::uint64_t offset, std::span<std::uint8_t> out) const override {
    const TensorInfo* info = model_->find(std::string(tensor) + ".weight");
    model_->read(info == nullptr ? model_->require(tensor) : *info, offset, out);
  }

 private:
  std::shared_ptr<const GgufModel> model_;
};

}  // namespace sterna
