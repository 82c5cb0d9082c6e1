#include "plan/kv_layout.h"

#include <algorithm>
#include <limits>
#include <string>

#include "base/error.h"
#include "program/slots.h"

namespace sterna {
namespace {

/// Of 64 rows of `dim` elements, stored as `stride` of them.
std::int64_t tile_bytes(KvType type, std::int64_t dim, std::int64_t stride) {
  switch (type) {
    case KvType::kF16:
      return kPageSlots * stride * 2;
    case KvType::kF32:
      return kPageSlots * stride * 4;
    case KvType::kQ8_0:
      break;
  }
  return kPageSlots * (stride + (dim + kKvGroup - 1) / kKvGroup * 2);
}

/// What store_kv writes is for other functions. Otherwise rows see later ones in all functions or in none.
KvPoolKind kind_of(const Program& program, std::int64_t layer) {
  if (cross_layers(program).contains(layer)) return KvPoolKind::kCross;
  bool causal = false;
  bool both_ways = false;
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      if (node.op != "attention" || node.integer("layer") != layer) continue;
      (node.flag("causal") ? causal : both_ways) = true;
    }
  }
  if (causal && both_ways) {
    throw UnsupportedModelError("attention in layer " + std::to_string(layer) +
                                " is causal in one function and not in another");
  }
  return both_ways ? KvPoolKind::kTemporary : KvPoolKind::kSequence;
}

/// How far back the layer's attention looks; 0 where one of its nodes sees all.
std::int64_t window_of(const Program& program, std::int64_t layer) {
  std::int64_t window = -1;
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      if (node.op != "attention" || node.integer("layer") != layer) continue;
      // The first key of a chunk is no further back than a window of that length reaches.
      const std::int64_t seen = std::max(node.integer("window"), node.integer("chunk"));
      window = seen == 0 || window == 0 ? 0 : std::max(window, seen);
    }
  }
  // No sequence is longer than what 32 bits count.
  return window > std::numeric_limits<std::int32_t>::max() ? 0 : std::max<std::int64_t>(window, 0);
}

const char* name_of(KvType type) {
  switch (type) {
    case KvType::kF16:
      return "f16";
    case KvType::kF32:
      return "f32";
    case KvType::kQ8_0:
      break;
  }
  return "q8_0";
}

}  // namespace

KvLayout::KvLayout(const Program& program, KvType type, std::string_view backend)
    : type_(type), layout_(std::string(backend) + " " + name_of(type)) {
  for (const KvSlot& slot : program.kv_slots) {
    const KvPoolKind kind = kind_of(program, slot.layer);
    const bool temporary = kind == KvPoolKind::kTemporary;
    const auto window = kind == KvPoolKind::kSequence ? static_cast<std::int32_t>(window_of(program, slot.layer)) : 0;
    const auto found = std::find_if(pools_.begin(), pools_.end(),
                                    [&](const KvPoolInfo& pool) { return pool.window == window && pool.kind == kind; });
    Layer layer;
    layer.pool = static_cast<std::size_t>(found - pools_.begin());
    if (found == pools_.end()) pools_.push_back({window, 0, kind});
    KvPoolInfo& pool = pools_[layer.pool];
    layer.offset = temporary ? 0 : static_cast<std::int64_t>(pool.page_bytes);
    layer.num_heads = static_cast<int>(slot.num_kv_heads);
    layer.head_dim = static_cast<int>(slot.head_dim);
    layer.value_dim = static_cast<int>(slot.value_head_dim);
    layer.value_stride = (layer.value_dim + 15) / 16 * 16;
    layer.value_offset = tile_bytes(type, layer.head_dim, layer.head_dim);
    layer.latent = slot.latent;
    layer.head_bytes = layer.value_offset;
    if (!slot.latent) layer.head_bytes += tile_bytes(type, layer.value_dim, layer.value_stride);
    const auto bytes = static_cast<std::uint64_t>(layer.num_heads * layer.head_bytes);
    pool.page_bytes = temporary ? std::max(pool.page_bytes, bytes) : pool.page_bytes + bytes;
    if (static_cast<std::size_t>(slot.layer) >= layers_.size())
      layers_.resize(static_cast<std::size_t>(slot.layer) + 1);
    layers_[static_cast<std::size_t>(slot.layer)] = layer;
    layout_ += ' ';
    layout_ += std::to_string(slot.layer) + ":" + std::to_string(window) + ":" + std::to_string(slot.num_kv_heads) +
               "x" + std::to_string(slot.head_dim) + (slot.latent ? "~" : "+") + std::to_string(slot.value_head_dim);
  }
  if (!program.state_slots.empty()) {
    state_slots_ = program.state_slots;
    std::int64_t floats = 0;
    for (const StateSlot& slot : state_slots_) {
      state_offsets_.push_back(floats);
      floats += (slot.rows * slot.columns + 15) / 16 * 16;
      layout_ += ' ';
      layout_ += std::to_string(slot.layer) + ":" + slot.op + ":" + std::to_string(slot.rows) + "x" +
                 std::to_string(slot.columns);
    }
    state_half_bytes_ = floats * 4;
    state_pool_ = static_cast<int>(pools_.size());
    pools_.push_back(
        {kStateWindow, static_cast<std::uint64_t>(kStateHeaderBytes + 2 * state_half_bytes_), KvPoolKind::kSequence});
  }
  if (pools_.empty()) pools_.emplace_back();
  if (pools_.size() > kMaxPools) {
    throw UnsupportedModelError("attention with " + std::to_string(pools_.size()) +
                                " different windows; a cache may have " + std::to_string(kMaxPools));
  }
}

std::int64_t KvLayout::state_offset(std::int64_t layer, std::string_view op) const {
  const auto found = std::find_if(state_slots_.begin(), state_slots_.end(),
                                  [&](const StateSlot& slot) { return slot.layer == layer && slot.op == op; });
  return state_offsets_.at(static_cast<std::size_t>(found - state_slots_.begin()));
}

}  // namespace sterna
