#include "cpu/kv_storage.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace sterna::cpu {
namespace {

constexpr std::int64_t kMaxLayers = 1 << 16;
// Large enough for huge pages, small enough not to take much more than asked for.
constexpr std::int64_t kSlabBytes = std::int64_t{8} << 20;

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

}  // namespace

KvStorage::KvStorage(std::span<const KvSlot> slots, KvType type) : type_(type) {
  for (const KvSlot& slot : slots) {
    if (slot.layer >= kMaxLayers) throw UnsupportedModelError("attention in layer " + std::to_string(slot.layer));
    Layer layer;
    layer.offset = page_bytes_;
    layer.num_heads = static_cast<int>(slot.num_kv_heads);
    layer.head_dim = static_cast<int>(slot.head_dim);
    layer.value_dim = static_cast<int>(slot.value_head_dim);
    layer.value_stride = (layer.value_dim + 15) / 16 * 16;
    layer.value_offset = tile_bytes(type, layer.head_dim, layer.head_dim);
    layer.head_bytes = layer.value_offset + tile_bytes(type, layer.value_dim, layer.value_stride);
    page_bytes_ += layer.num_heads * layer.head_bytes;
    if (static_cast<std::size_t>(slot.layer) >= layers_.size())
      layers_.resize(static_cast<std::size_t>(slot.layer) + 1);
    layers_[static_cast<std::size_t>(slot.layer)] = layer;
  }
}

void KvStorage::reserve(std::int32_t num_pages) {
  // Before anything is mapped: slabs one by one would be granted long after they no longer fit.
  if (const auto most = static_cast<std::int64_t>(physical_memory() / std::max<std::uint64_t>(1, page_bytes_));
      num_pages > most) {
    throw MemoryBudgetError("a KV cache of " + std::to_string(num_pages) + " pages of " + std::to_string(page_bytes_) +
                            " bytes is more than the memory of this machine");
  }
  while (this->num_pages() < num_pages) {
    const std::int64_t wanted = num_pages - this->num_pages();
    const std::int64_t count =
        std::max<std::int64_t>(1, std::min(wanted, kSlabBytes / std::max<std::int64_t>(page_bytes_, 1)));
    slabs_.emplace_back(static_cast<std::size_t>(count * page_bytes_));
    for (std::int64_t i = 0; i < count; ++i) pages_.push_back(slabs_.back().data() + i * page_bytes_);
  }
}

}  // namespace sterna::cpu
