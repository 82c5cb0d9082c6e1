/// What matmuls of many rows read: panels unpacked side by side, once for all token rows, one byte a code.
#pragma once

#include <cstdint>

#include "quant/layout.h"

namespace sterna::cpu {

/// How codes and scales of a wide tile combine; a layout becomes one of these.
enum class GemmKind : std::uint8_t {
  kDense,       // floats
  kBlock32,     // a float scale per 32 k
  kBlock32Min,  // and a minimum
  kBlock16,     // a float scale per 16 k
  kSuper32,     // blocks of 256 with an integer scale per 32 k
  kSuper32Min,  // and an integer minimum
  kSuper16,     // the same per 16 k
  kSuper16Min,
  kSuperFlat,  // blocks of 256 with nothing within
  kSum,        // one scale for the whole matrix
  kCount,
};

/// How often along k a kind has scales and minimums.
struct GemmShape {
  int block;     // k per float scale: 16, 32 or 256; 0: none
  int group;     // k per integer scale: 16 or 32; 0: none
  bool has_min;  // a float minimum with each float scale
};

constexpr GemmShape gemm_shape(GemmKind kind) {
  using enum GemmKind;
  switch (kind) {
    case kBlock32:
      return {32, 0, false};
    case kBlock32Min:
      return {32, 0, true};
    case kBlock16:
      return {16, 0, false};
    case kSuper32:
      return {256, 32, false};
    case kSuper32Min:
      return {256, 32, true};
    case kSuper16:
      return {256, 16, false};
    case kSuper16Min:
      return {256, 16, true};
    case kSuperFlat:
      return {256, 0, false};
    case kDense:
    case kSum:
    default:
      return {0, 0, false};
  }
}

/// The kind of a layout. `uniform`: one scale for the matrix and one activation scale per row (ternary).
constexpr GemmKind gemm_kind(LayoutId layout, bool uniform) {
  using enum GemmKind;
  if (layout == LayoutId::kF32 || layout == LayoutId::kF16 || layout == LayoutId::kBF16) return kDense;
  const LayoutSpec spec = layout_spec(layout == LayoutId::kNative ? LayoutId::kUnpacked : layout);
  if (spec.scales == ScaleKind::kBlock) return spec.group < 32 ? kBlock16 : spec.has_min ? kBlock32Min : kBlock32;
  if (spec.group_store == GroupStore::kNone) return uniform ? kSum : kSuperFlat;
  if (spec.group == 16) return spec.has_min ? kSuper16Min : kSuper16;
  return spec.has_min ? kSuper32Min : kSuper32;
}

/// `width` rows (panels * 16) of k columns. Every array has `width` neighbours per step of k, so that kernels load
/// vectors.
///
/// Codes are signed values; kernels multiply them by activations + 128 (which are unsigned) and start their sums from
/// -128 * (sum of codes), the corrections. In super kinds the corrections hold the integer scales as well.
struct WideTile {
  int width = 0;
  std::int8_t* codes = nullptr;         // [k / 4][width][4]
  float* values = nullptr;              // [k][width], dense only
  float* scales = nullptr;              // [k / block][width]
  float* mins = nullptr;                // [k / block][width]; super kinds: -dmin
  std::int32_t* corrections = nullptr;  // [k / block][width]; kSum: [width]
  std::int32_t* factors = nullptr;      // [k / group][width]
  std::int32_t* min_pairs = nullptr;    // [k / (2 group)][width], two int16 each

  /// A tile of a kind at `base`, which has wide_tile_bytes() bytes, aligned to 64.
  static WideTile at(std::uint8_t* base, GemmKind kind, std::int64_t k, int width);
};

std::int64_t wide_tile_bytes(GemmKind kind, std::int64_t k, int width);

}  // namespace sterna::cpu
