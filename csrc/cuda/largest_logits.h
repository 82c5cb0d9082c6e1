/// The largest logits of a run's outputs: found on the device, and few enough to be brought here after every run.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "cuda/arguments.h"
#include "cuda/device.h"
#include "engine/batch.h"

namespace sterna::cuda {

class LargestLogits {
 public:
  /// Device memory for up to so many outputs.
  static std::uint64_t bytes(std::int32_t max_outputs, std::int32_t vocab_size);

  LargestLogits(std::shared_ptr<const Device> device, std::int32_t max_outputs, std::int32_t vocab_size);

  /// Puts into the stream what finds them for a batch that asks for some, and their way here.
  void find(const Rows& logits, const Batch& batch, const Launch& launch);
  /// Of the last batch that find() was called for, when the stream is done with it.
  std::span<const TokenLogit> of(std::size_t output) const;
  std::uint64_t bytes() const { return found_.size() + maxima_.size(); }

 private:
  const std::shared_ptr<const Device> device_;
  const std::int64_t vocab_size_;
  std::int64_t most_ = 0;  // of the batch
  DeviceMemory found_, maxima_, host_;
};

}  // namespace sterna::cuda
