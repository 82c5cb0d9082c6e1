#include "cuda/largest_logits.h"

#include <algorithm>

namespace sterna::cuda {
namespace {

std::int64_t num_groups(std::int64_t vocab_size) { return (vocab_size + 31) / 32; }

std::uint64_t found_bytes(std::int64_t outputs, std::int64_t most) {
  return static_cast<std::uint64_t>(outputs * (1 + most)) * sizeof(TokenLogit);
}
std::uint64_t maxima_bytes(std::int64_t outputs, std::int64_t vocab_size) {
  return static_cast<std::uint64_t>(outputs * num_groups(vocab_size)) * sizeof(std::uint32_t);
}

}  // namespace

std::uint64_t LargestLogits::bytes(std::int32_t max_outputs, std::int32_t vocab_size) {
  return found_bytes(max_outputs, kMostLargest) + maxima_bytes(max_outputs, vocab_size);
}

LargestLogits::LargestLogits(std::shared_ptr<const Device> device, std::int32_t max_outputs, std::int32_t vocab_size)
    : device_(std::move(device)),
      vocab_size_(vocab_size),
      found_(device_, found_bytes(max_outputs, kMostLargest)),
      maxima_(device_, maxima_bytes(max_outputs, vocab_size)),
      host_(device_, found_bytes(max_outputs, kMostLargest), DeviceMemory::Where::kHost) {}

void LargestLogits::find(const Rows& logits, const Batch& batch, const Launch& launch) {
  most_ = std::min(*std::ranges::max_element(batch.largest), kMostLargest);
  const LargestArguments arguments = {
      logits, vocab_size_, maxima_.as<std::uint32_t>(), num_groups(vocab_size_), found_.as<TokenLogit>(), most_};
  device_->launch(Kernel::kLargest, &arguments, launch);
  device_->copy(host_.data(), found_.data(), found_bytes(batch.num_outputs(), most_));
}

std::span<const TokenLogit> LargestLogits::of(std::size_t output) const {
  const TokenLogit* const row = host_.as<TokenLogit>() + output * static_cast<std::size_t>(1 + most_);
  return {row + 1, static_cast<std::size_t>(row->token)};
}

}  // namespace sterna::cuda
