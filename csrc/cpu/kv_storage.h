/// The bytes of the paged KV cache on the CPU. A page holds 64 slots of every layer of its pool; pages live in slabs
/// allocated on demand.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "engine/batch.h"
#include "plan/kv_layout.h"
#include "plan/state_runs.h"

namespace sterna::cpu {

/// The order of bytes, for KvLayout.
constexpr std::string_view kKvBackend = "cpu 1";

/// Keys of one head and page lie as [head_dim][64] (64 slots side by side, so that 16 keys fill a vector), values as
/// [64][value_stride], value_stride being the value dimension rounded up to 16. In a q8_0 cache these are codes, int8;
/// binary16 scales lie behind the keys and behind the values, [groups][64] both: the scales of 16 slots turn into
/// floats at once. Zero bytes are zero keys and values of every type.
class KvStorage final : public KvLayout, public StatePages {
 public:
  explicit KvStorage(const KvLayout& layout) : KvLayout(layout), pages_(pools().size()) {}

  std::int32_t num_pages(std::size_t pool) const { return static_cast<std::int32_t>(pages_.at(pool).size()); }
  /// Adds slabs until there are at least num_pages. New pages are zero.
  void reserve(std::size_t pool, std::int32_t num_pages);
  std::span<std::uint8_t> page(std::size_t pool, std::int32_t number) const;

  /// Of a q8_0 cache: the scale of slot 0 and the first group; those of the next group are 64 further.
  static std::uint16_t* key_scales(std::uint8_t* keys, const Layer& layer) {
    return reinterpret_cast<std::uint16_t*>(keys + kPageSlots * layer.head_dim);
  }
  static std::uint16_t* value_scales(std::uint8_t* values, const Layer& layer) {
    return reinterpret_cast<std::uint16_t*>(values + kPageSlots * layer.value_stride);
  }

  StateHeader& state_header(std::int32_t number) const override {
    return *reinterpret_cast<StateHeader*>(state_page(number));
  }
  float* state_half(std::int32_t number, int half) const override {
    return reinterpret_cast<float*>(state_page(number) + kStateHeaderBytes + half * state_half_bytes());
  }

  std::uint8_t* keys(std::int32_t page, const Layer& layer, int head) const {
    return pages_[layer.pool][static_cast<std::size_t>(page)] + layer.offset + head * layer.head_bytes;
  }
  std::uint8_t* values(std::int32_t page, const Layer& layer, int head) const {
    return keys(page, layer, head) + layer.value_offset;
  }

 private:
  std::uint8_t* state_page(std::int32_t number) const {
    return pages_[static_cast<std::size_t>(state_pool())][static_cast<std::size_t>(number)];
  }

  std::vector<Buffer> slabs_;
  std::vector<std::vector<std::uint8_t*>> pages_;  // by pool
};

}  // namespace sterna::cpu
