/// The bytes of the paged KV cache on the CPU. A page holds 64 slots of every layer of its pool; pages live in slabs
/// allocated on demand.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "engine/batch.h"
#include "plan/plan.h"
#include "program/program.h"

namespace sterna::cpu {

/// Keys of one head and page lie as [head_dim][64] (64 slots side by side, so that 16 keys fill a vector), values as
/// [64][value_stride], value_stride being the value dimension rounded up to 16. In a q8_0 cache these are codes, int8;
/// binary16 scales lie behind the keys and behind the values, [groups][64] both: the scales of 16 slots turn into
/// floats at once. Zero bytes are zero keys and values of every type.
class KvStorage {
 public:
  struct Layer {
    std::size_t pool = 0;
    std::int64_t offset = 0;  // of the layer in a page of its pool
    std::int64_t head_bytes = 0;
    std::int64_t value_offset = 0;  // of the values within a head's bytes
    int num_heads = 0;
    int head_dim = 0;
    int value_dim = 0;
    int value_stride = 0;
    bool latent = false;  // no values are stored: they are the beginnings of the keys
  };

  /// Layers with the same window share a pool. Those that see later positions share a temporary one, and each page of
  /// it: a layer's keys and values are read before the next layer writes its own. States are the last pool.
  KvStorage(const Program& program, KvType type);

  /// What a page of states begins with: after how many tokens each of its halves is the state; 0: it is none. A run
  /// reads one half and writes the other, so that it can be run again.
  struct StateHeader {
    std::int64_t num_tokens[2];
  };
  static constexpr std::int64_t kStateHeaderBytes = 64;

  KvType type() const { return type_; }
  std::span<const KvPoolInfo> pools() const { return pools_; }
  /// Names the meaning of a page's bytes: the type, and each layer's shape.
  const std::string& layout() const { return layout_; }

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

  /// The pool of states, or -1.
  int state_pool() const { return state_pool_; }
  /// Floats into a half where the slot's state lies.
  std::int64_t state_offset(std::int64_t layer, std::string_view op) const;
  StateHeader& state_header(std::int32_t page) const {
    return *reinterpret_cast<StateHeader*>(
        pages_[static_cast<std::size_t>(state_pool_)][static_cast<std::size_t>(page)]);
  }
  float* state_half(std::int32_t page, int half) const {
    return reinterpret_cast<float*>(pages_[static_cast<std::size_t>(state_pool_)][static_cast<std::size_t>(page)] +
                                    kStateHeaderBytes + half * state_half_bytes_);
  }

  const Layer& layer(std::int64_t index) const { return layers_.at(static_cast<std::size_t>(index)); }
  std::uint8_t* keys(std::int32_t page, const Layer& layer, int head) const {
    return pages_[layer.pool][static_cast<std::size_t>(page)] + layer.offset + head * layer.head_bytes;
  }
  std::uint8_t* values(std::int32_t page, const Layer& layer, int head) const {
    return keys(page, layer, head) + layer.value_offset;
  }

 private:
  KvType type_;
  std::vector<KvPoolInfo> pools_;
  std::string layout_;
  std::vector<Layer> layers_;  // by layer number
  std::vector<StateSlot> state_slots_;
  std::vector<std::int64_t> state_offsets_;
  int state_pool_ = -1;
  std::int64_t state_half_bytes_ = 0;
  std::vector<Buffer> slabs_;
  std::vector<std::vector<std::uint8_t*>> pages_;  // by pool
};

}  // namespace sterna::cpu
