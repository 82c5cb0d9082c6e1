/// A batch on its way to the device: gathered in one piece of page-locked memory and copied at once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/device.h"
#include "engine/batch.h"
#include "plan/state_runs.h"

namespace sterna::cuda {

class BatchUpload {
 public:
  /// For batches of up to so many rows; `hidden_size` is that of given embeddings, `received_floats` that of a row that
  /// the plan before this one in a chain computed: most, where functions differ.
  BatchUpload(std::shared_ptr<const Device> device, std::int32_t max_tokens, std::int32_t hidden_size,
              std::int64_t received_floats);

  /// Copies a batch that was checked; `states` has its segments, or is null. What runs must be complete.
  void copy(const Batch& batch, const StateRuns* states);

  const DeviceBatch& device_batch() const { return batch_; }
  /// Those that have rows.
  std::int32_t num_sequences() const { return num_sequences_; }
  /// Changes when addresses do.
  std::int64_t generation() const { return generation_; }
  std::uint64_t bytes() const { return device_memory_.size(); }

 private:
  /// Room for so many entries behind what is there; returns where they begin.
  template <class T>
  std::uint64_t place(std::int64_t count);
  void lay_out(std::int64_t num_sequences, std::int64_t num_pages, std::int64_t num_pools, std::int64_t num_given,
               std::int64_t num_segments);

  std::shared_ptr<const Device> device_;
  const std::int64_t max_tokens_;
  const std::int64_t hidden_size_;
  const std::int64_t received_floats_;
  std::int64_t most_sequences_ = 0, most_pages_ = 0, num_pools_ = 0, most_given_ = 0, most_segments_ = 0;
  std::uint64_t used_ = 0;
  DeviceMemory device_memory_, host_memory_;
  DeviceBatch batch_{};  // in device memory
  DeviceBatch host_{};   // the same places in host memory
  std::int32_t num_sequences_ = 0;
  std::int64_t generation_ = 0;
};

}  // namespace sterna::cuda
