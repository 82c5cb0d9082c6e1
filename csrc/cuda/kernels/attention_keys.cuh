/// Which keys a row sees, and how a block reads them: tiles of 64 keys pass through a ring of chunks in shared memory,
/// loaded some chunks ahead. The keys of a tile come first, then its values.
#pragma once

#include "cuda/kernels/device.cuh"
#include "engine/batch.h"

namespace sterna::cuda {

constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / kWarp;
constexpr int kSpanKeys = 256;  // computed alone, and merged left to right; results depend on it
constexpr int kSpanTiles = kSpanKeys / kPageSlots;

struct KeyRange {
  std::int32_t first, last;  // both included; none where last < first

  __device__ std::int32_t first_span() const { return first / kSpanKeys; }
  __device__ std::int32_t num_spans() const { return last < first ? 0 : last / kSpanKeys - first / kSpanKeys + 1; }
};

__device__ inline KeyRange seen_keys(const AttendArguments& a, const DeviceBatch& batch, std::int32_t row) {
  const std::int64_t position = batch.positions[row];
  if (a.cross) return {0, batch.encoded_sizes[batch.sequences[row]] - 1};
  std::int64_t first = 0, last = position;
  if (a.causal) {
    if (a.chunk != 0) {
      first = position / a.chunk * a.chunk;
    } else if (a.window != 0) {
      first = position - a.window + 1;
    }
  } else {
    last = batch.positions[batch.last_rows[row]];
    if (a.window != 0) {
      first = position - a.window / 2;
      last = position + a.window / 2 < last ? position + a.window / 2 : last;
    }
  }
  return {static_cast<std::int32_t>(first > 0 ? first : 0), static_cast<std::int32_t>(last)};
}

template <KvType type>
constexpr int kElementBytes = type == KvType::kF32   ? 4
                              : type == KvType::kF16 ? 2
                                                     : 1;

/// Elements of a slot in a chunk.
template <KvType type>
constexpr int kChunkColumns = type == KvType::kF32 ? 32 : 64;
template <KvType type>
constexpr int kChunkRowBytes = kChunkColumns<type> * kElementBytes<type>;
template <KvType type>
constexpr int kChunkBytes = kPageSlots * kChunkRowBytes<type>;
/// In a q8_0 cache two scales for each slot follow.
template <KvType type>
constexpr int kStageBytes = kChunkBytes<type> + (type == KvType::kQ8_0 ? kPageSlots * 4 : 0);

/// Where byte `byte` of a slot's row lies in a chunk. Pieces of 16 bytes change places, so that warps which read a
/// column of pieces, two neighbouring rows or every other row meet all banks.
template <KvType type>
__device__ inline int chunk_place(int row, int byte) {
  int piece = byte / 16;
  if constexpr (kChunkRowBytes<type> == 128) {
    piece ^= (row & 6) ^ ((row & 1) * 5);
  } else {
    piece ^= row >> 1 & 3;
  }
  return row * kChunkRowBytes<type> + piece * 16 + byte % 16;
}

/// Walks the tiles of every `step`th of some spans and loads their chunks. All threads of the block do the same calls.
template <KvType type, int stages>
class KeyRing {
 public:
  /// `ring`: [stages][kStageBytes], and `bases`: [kAttentionThreads], in shared memory.
  __device__ KeyRing(const KvLayer& layer, const DeviceBatch& batch, std::int32_t sequence, std::int32_t head,
                     KeyRange keys, std::int32_t first_span, std::int32_t step, std::uint8_t* ring,
                     const std::uint8_t** bases)
      : layer_(layer),
        batch_(batch),
        sequence_(sequence),
        head_(head),
        keys_(keys),
        first_span_(first_span),
        step_(step),
        ring_(ring),
        bases_(bases) {
    find_pages();
    if (!is_tile(place_)) next_tile();
#pragma unroll 1
    for (int i = 0; i < stages - 1; ++i) load_next();
  }

  /// The next chunk, which is read until the next call.
  __device__ const std::uint8_t* next() {
    wait_copies<stages - 2>();
    __syncthreads();  // it is there, and everybody has read the one before it, whose place is taken now
    const std::uint8_t* chunk = ring_ + after(filled_) * kStageBytes<type>;
    load_next();
    return chunk;
  }

 private:
  static constexpr int kColumns = kChunkColumns<type>;

  __device__ static int after(int stage) { return stage + 1 == stages ? 0 : stage + 1; }

  __device__ int key_chunks() const { return (layer_.head_dim + kColumns - 1) / kColumns; }

  __device__ std::int32_t tile_at(std::int32_t place) const {
    return (first_span_ + place / kSpanTiles * step_) * kSpanTiles + place % kSpanTiles;
  }
  __device__ bool is_behind(std::int32_t place) const { return tile_at(place) > keys_.last / kPageSlots; }
  __device__ bool is_tile(std::int32_t place) const {
    return tile_at(place) >= keys_.first / kPageSlots && !is_behind(place);
  }

  /// The pages of this place and those after it, one for each thread.
  __device__ void find_pages() {
    __syncthreads();
    const std::int32_t place = place_ + static_cast<std::int32_t>(threadIdx.x);
    const std::uint8_t* base = nullptr;
    if (is_tile(place)) {
      const std::int32_t page = page_of(batch_, sequence_, layer_.pool, tile_at(place));
      if (page >= 0) base = layer_.pages[page] + layer_.offset + head_ * layer_.head_bytes;
    }
    bases_[threadIdx.x] = base;
    __syncthreads();
  }

  __device__ void next_tile() {
    do {
      ++place_;
      if (place_ % kAttentionThreads == 0) find_pages();
    } while (!is_tile(place_) && !is_behind(place_));
  }

  __device__ void load_next() {
    if (!is_behind(place_)) {
      load();
      if (++chunk_ == key_chunks() + (layer_.value_dim + kColumns - 1) / kColumns) {
        chunk_ = 0;
        next_tile();
      }
    }
    commit_copies();  // also of nothing: groups are counted
    filled_ = after(filled_);
  }

  __device__ void load() {
    std::uint8_t* stage = ring_ + filled_ * kStageBytes<type>;
    const std::uint8_t* base = bases_[place_ % kAttentionThreads];
    const bool of_keys = chunk_ < key_chunks();
    const bool from_keys = of_keys || layer_.latent;
    const int first = (of_keys ? chunk_ : chunk_ - key_chunks()) * kColumns;
    const int stride = from_keys ? layer_.head_dim : layer_.value_stride;
    const int dim = of_keys ? layer_.head_dim : layer_.value_dim;
    if (base != nullptr && !from_keys) base += layer_.value_offset;
    const std::int32_t tile_key = tile_at(place_) * kPageSlots;
    constexpr int kPieces = kChunkRowBytes<type> / 16;
    constexpr int kPieceElements = 16 / kElementBytes<type>;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kPageSlots * kPieces; i += kAttentionThreads) {
      const int slot = i / kPieces;
      const int column = first + i % kPieces * kPieceElements;
      std::uint8_t* to = stage + chunk_place<type>(slot, i % kPieces * 16);
      const std::int32_t key = tile_key + slot;
      const bool is_seen = base != nullptr && key >= keys_.first && key <= keys_.last;
      if (!is_seen || column >= dim) {  // whatever it holds, no sum may meet it
        *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
        continue;
      }
      const std::uint8_t* from = base + (slot * stride + column) * kElementBytes<type>;
      if (column + kPieceElements <= dim && stride % kPieceElements == 0) {
        copy_async_kept(to, from);
      } else {
        copy_elements(to, from, dim - column);
      }
    }
    if constexpr (type == KvType::kQ8_0) load_scales(stage + kChunkBytes<type>, base, first, stride, from_keys, dim);
  }

  /// Up to 16 bytes of them, then zeros.
  __device__ static void copy_elements(std::uint8_t* to, const std::uint8_t* from, int count) {
    constexpr int kBytes = kElementBytes<type>;
    *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
#pragma unroll 1
    for (int i = 0; i < 16 / kBytes && i < count; ++i) {
      if constexpr (kBytes == 4) {
        reinterpret_cast<float*>(to)[i] = reinterpret_cast<const float*>(from)[i];
      } else if constexpr (kBytes == 2) {
        reinterpret_cast<std::uint16_t*>(to)[i] = reinterpret_cast<const std::uint16_t*>(from)[i];
      } else {
        to[i] = from[i];
      }
    }
  }

  /// [64][2]: those of the chunk's two groups.
  __device__ void load_scales(std::uint8_t* to, const std::uint8_t* tile, int first, int stride, bool from_keys,
                              int dim) {
    const int slot = static_cast<int>(threadIdx.x);
    if (slot >= kPageSlots) return;
    // A latent tile's values are beginnings of its keys, and so are their scales.
    const int groups = ((from_keys ? layer_.head_dim : layer_.value_dim) + kKvGroup - 1) / kKvGroup;
    const int group = first / kKvGroup;
    const int count = (dim + kKvGroup - 1) / kKvGroup - group;
    auto* scales = reinterpret_cast<std::uint16_t*>(to) + 2 * slot;
    if (tile == nullptr) {
      scales[0] = scales[1] = 0;
      return;
    }
    const auto* from = reinterpret_cast<const std::uint16_t*>(tile + std::int64_t{kPageSlots} * stride) +
                       std::int64_t{slot} * groups + group;
    if (count >= 2 && groups % 2 == 0) {
      copy_async_word(scales, from);
    } else {
      scales[0] = from[0];
      scales[1] = count >= 2 ? from[1] : std::uint16_t{0};
    }
  }

  const KvLayer& layer_;
  const DeviceBatch& batch_;
  std::int32_t sequence_;
  std::int32_t head_;
  KeyRange keys_;
  std::int32_t first_span_, step_;
  std::uint8_t* ring_;
  const std::uint8_t** bases_;
  std::int32_t place_ = 0;  // of the tile that is loaded: four for each span
  int chunk_ = 0;           // of that tile
  int filled_ = 0;          // the stage that it goes to; the one after it is read next
};

}  // namespace sterna::cuda
