/// How the bytes of a KV page are divided: pools, and each layer's place in the pages of its pool. The same on every
/// device but for the order within a head's keys and values, which the backend says.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plan/plan.h"
#include "program/program.h"

namespace sterna {

class KvLayout {
 public:
  struct Layer {
    std::size_t pool = 0;
    std::int64_t offset = 0;  // of the layer in a page of its pool
    std::int64_t head_bytes = 0;
    std::int64_t value_offset = 0;  // of the values within a head's bytes
    int num_heads = 0;
    int head_dim = 0;
    int value_dim = 0;
    int value_stride = 0;  // value_dim rounded up to 16
    bool latent = false;   // no values are stored: they are the beginnings of the keys
  };

  /// Layers with the same window share a pool. Those that see later positions share a temporary one, and each page of
  /// it: a layer's keys and values are read before the next layer writes its own. States are the last pool. `backend`
  /// names the order of the bytes. Throws UnsupportedModelError.
  KvLayout(const Program& program, KvType type, std::string_view backend);

  /// A page of states begins with the header of its two halves (see StatePages), padded to this.
  static constexpr std::int64_t kStateHeaderBytes = 64;

  KvType type() const { return type_; }
  std::span<const KvPoolInfo> pools() const { return pools_; }
  /// Names the meaning of a page's bytes: the backend, the type, and each layer's shape.
  const std::string& layout() const { return layout_; }
  const Layer& layer(std::int64_t index) const { return layers_.at(static_cast<std::size_t>(index)); }

  /// The pool of states, or -1.
  int state_pool() const { return state_pool_; }
  std::int64_t state_half_bytes() const { return state_half_bytes_; }
  /// Floats into a half where the slot's state lies.
  std::int64_t state_offset(std::int64_t layer, std::string_view op) const;

 private:
  KvType type_;
  std::vector<KvPoolInfo> pools_;
  std::string layout_;
  std::vector<Layer> layers_;  // by layer number
  std::vector<StateSlot> state_slots_;
  std::vector<std::int64_t> state_offsets_;
  int state_pool_ = -1;
  std::int64_t state_half_bytes_ = 0;
};

}  // namespace sterna
