#include "cpu/wide_tile.h"

namespace sterna::cpu {
namespace {

/// Bytes of each array, in the order of WideTile.
struct Sizes {
  std::int64_t codes, values, scales, mins, corrections, factors, min_pairs;

  std::int64_t total() const { return codes + values + scales + mins + corrections + factors + min_pairs; }
};

Sizes sizes_of(GemmKind kind, std::int64_t k, int width) {
  if (kind == GemmKind::kDense) return {0, k * width * 4, 0, 0, 0, 0, 0};
  const GemmShape shape = gemm_shape(kind);
  const auto per = [&](int every) { return every == 0 ? 0 : k / every * width * 4; };
  Sizes sizes{k * width,        0, per(shape.block), per(shape.has_min ? shape.block : 0), per(shape.block),
              per(shape.group), 0};
  if (kind == GemmKind::kSum) sizes.corrections = std::int64_t{width} * 4;
  if (shape.has_min && shape.group != 0) sizes.min_pairs = per(2 * shape.group);
  return sizes;
}

}  // namespace

WideTile WideTile::at(std::uint8_t* base, GemmKind kind, std::int64_t k, int width) {
  const Sizes sizes = sizes_of(kind, k, width);
  WideTile tile;
  tile.width = width;
  const auto take = [&]<class T>(T*& array, std::int64_t bytes) {
    array = bytes == 0 ? nullptr : reinterpret_cast<T*>(base);
    base += bytes;
  };
  take(tile.codes, sizes.codes);
  take(tile.values, sizes.values);
  take(tile.scales, sizes.scales);
  take(tile.mins, sizes.mins);
  take(tile.corrections, sizes.corrections);
  take(tile.factors, sizes.factors);
  take(tile.min_pairs, sizes.min_pairs);
  return tile;
}

std::int64_t wide_tile_bytes(GemmKind kind, std::int64_t k, int width) { return sizes_of(kind, k, width).total(); }

}  // namespace sterna::cpu
