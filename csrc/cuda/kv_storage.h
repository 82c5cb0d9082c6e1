/// The bytes of the paged KV cache on a device. Pages live in slabs allocated on demand; kernels find them through a
/// table by number, whose address never changes.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "cuda/arguments.h"
#include "cuda/device.h"
#include "plan/kv_layout.h"
#include "plan/state_runs.h"

namespace sterna::cuda {

/// The order of bytes, for sterna::KvLayout: what KvLayer says.
constexpr std::string_view kKvBackend = "cuda 1";

class KvStorage final : public sterna::KvLayout, public StatePages {
 public:
  KvStorage(const sterna::KvLayout& layout, std::shared_ptr<const Device> device);

  std::int32_t num_pages(std::size_t pool) const { return static_cast<std::int32_t>(pages_.at(pool).size()); }
  /// Adds slabs until there are at least num_pages. New pages are zero. Throws MemoryBudgetError.
  void reserve(std::size_t pool, std::int32_t num_pages);
  void copy_page(std::size_t pool, std::int32_t from, std::int32_t to);
  void read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const;
  void write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes);

  StateHeader& state_header(std::int32_t page) const override { return state_headers_[static_cast<std::size_t>(page)]; }
  /// In device memory.
  float* state_half(std::int32_t page, int half) const override {
    return reinterpret_cast<float*>(pages_[static_cast<std::size_t>(state_pool())][static_cast<std::size_t>(page)] +
                                    kStateHeaderBytes + half * state_half_bytes());
  }

  KvLayer device_layer(std::int64_t index) const;

 private:
  std::uint8_t* page(std::size_t pool, std::int32_t number) const;
  bool is_state(std::size_t pool) const { return static_cast<int>(pool) == state_pool(); }

  std::shared_ptr<const Device> device_;
  std::deque<DeviceMemory> slabs_;
  std::vector<std::vector<std::uint8_t*>> pages_;  // by pool
  std::vector<DeviceMemory> tables_;               // by pool: the same, on the device
  std::int64_t table_size_ = 0;
  mutable std::vector<StateHeader> state_headers_;  // by page; those within the pages are written when one is read
};

/// A layer's place in pages, without the pages.
KvLayer describe_layer(const sterna::KvLayout& layout, std::int64_t index);

}  // namespace sterna::cuda
