/// Compute layouts: how packed weights lie in memory for the kernels. A format (bytes on disk) is decoded once and
/// packed, losslessly.
///
/// A matrix [n, k] is cut into panels of 16 rows; a panel is a sequence of panel blocks, each 16 rows x one
/// quantisation block of k. The block's codes come first, unit by unit (a unit is 32 k, that is 8 chunks of 4 k), then
/// its scales:
///
///   unit u:   low plane, then high plane (where the layout has one)
///   scales:   group scales [groups][16] bytes, group mins [groups][16] bytes     (super-block layouts)
///             scale [16] (or [groups][16]), min [16]
///
/// A chunk is 64 bytes' worth of codes, byte 4 * row + j being code k = 4 * chunk + j of that row, so that one 4-byte
/// broadcast of activations meets 16 rows at once. Planes narrower than 8 bits stack chunks in the bits of a byte: with
/// 4 bits, byte b of chunk pair p holds chunk 2p in bits 0-3 and chunk 2p+1 in bits 4-7; with 2 bits chunks 4q..4q+3 in
/// bits 0-1, 2-3, 4-5, 6-7; with 1 bit chunks 8u..8u+7 in bits 0..7. A 5-bit code is 4 low bits and 1 high bit, a 6-bit
/// code 4 and 2, a 3-bit code 2 and 1. Codes are stored unsigned: value = step * code - bias, or value = table[code].
///
/// Ternary at 1.6 bits: 13 bytes x 64 a block of 256, byte b of quintet q holding chunks 5q..5q+4 as
/// ceil(256 / 243 * (81 c0 + 27 c1 + 9 c2 + 3 c3 + c4)) with digits c in 0..2 (the fixed point of ggml's TQ1_0: digit i
/// is the integer part of 3 * frac(3^i byte / 256)); the last quintet has four chunks.
///
/// Rows are padded to a multiple of 16 with zero codes and zero scales.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/buffer.h"
#include "quant/format.h"

namespace sterna {

constexpr int kPanelRows = 16;
constexpr int kChunk = 4;  // k per chunk
constexpr int kUnit = 32;  // k per unit

enum class LayoutId : std::uint8_t {
  kF32,
  kF16,
  kBF16,
  // One float scale per group: value = scale * (step * code - bias) (+ min).
  kInt8,         // Q8_0
  kInt4,         // Q4_0
  kInt4Min,      // Q4_1
  kInt5,         // Q5_0
  kInt5Min,      // Q5_1
  kTable4,       // IQ4_NL
  kTable4E8M0,   // MXFP4
  kTable4UE4M3,  // NVFP4
  kInt1,         // Q1_0
  kInt2,         // Q2_0
  kInt2Wide,     // the same with a scale per 128: Q2_0_G128, and I2_S where k is no multiple of 256
  // Super-blocks of 256: value = d * group_scale * (code - bias) (- dmin * group_min).
  kInt2Super,    // Q2_K
  kInt3Super,    // Q3_K
  kInt4Super,    // Q4_K
  kInt5Super,    // Q5_K
  kInt6Super,    // Q6_K
  kTable4Super,  // IQ4_XS
  kTernary2,     // TQ2_0; I2_S and Q2_0 with one scale throughout
  kTernary1_6,   // TQ1_0
  kBinary,       // Q1_0 with one scale throughout
  kNative,       // IQ1 to IQ3: the file's own blocks, row by row inside a panel block, decoded per tile to kUnpacked
  kUnpacked,     // never stored: one byte a code, float scales; what kNative is decoded to
  kCount,
};

/// What a scale is stored as.
enum class ScaleStore : std::uint8_t { kNone, kHalf, kE8M0, kUE4M3, kFloat };
/// What an integer group scale is stored as; kNibbles has scale and min in one byte.
enum class GroupStore : std::uint8_t { kNone, kSigned8, kUnsigned8, kNibbles };

struct LayoutSpec {
  LayoutId id;
  std::string_view name;
  ScaleKind scales;
  int block;      // k per panel block
  int low_bits;   // 8, 4, 2, 1; 0: ternary at 1.6 bits
  int high_bits;  // 0, 1, 2
  int bias;       // value = step * code - bias (tables: unused)
  bool is_table;
  int group;  // k per scale (block layouts) or per integer group scale (super layouts)
  ScaleStore scale_store;
  GroupStore group_store;
  bool has_min;
  int step = 1;

  constexpr int units() const { return block / kUnit; }
  constexpr int groups() const { return block / group; }
  constexpr int unit_bytes() const { return 64 * 8 * (low_bits + high_bits) / 8; }
  constexpr int code_bytes() const { return low_bits == 0 ? 13 * 64 : units() * unit_bytes(); }
  constexpr int group_scale_offset() const { return code_bytes(); }
  constexpr int group_min_offset() const {
    return group_scale_offset() + (group_store == GroupStore::kNone ? 0 : groups() * kPanelRows);
  }
  constexpr int scale_offset() const {
    const bool separate_mins = has_min && scales == ScaleKind::kSuper && group_store != GroupStore::kNibbles;
    return group_min_offset() + (separate_mins ? groups() * kPanelRows : 0);
  }
  constexpr int scale_count() const { return scales == ScaleKind::kSuper ? 1 : groups(); }
  constexpr int scale_bytes() const {
    return scale_store == ScaleStore::kFloat ? 4 : scale_store == ScaleStore::kHalf ? 2 : 1;
  }
  constexpr int min_offset() const { return scale_offset() + scale_count() * kPanelRows * scale_bytes(); }
  constexpr int block_bytes() const { return min_offset() + (has_min ? kPanelRows * 2 : 0); }
};

/// The numbers of a quantised layout; not for dense layouts, nor for kNative.
constexpr LayoutSpec layout_spec(LayoutId id) {
  using enum LayoutId;
  constexpr auto kBlock = ScaleKind::kBlock;
  constexpr auto kSuper = ScaleKind::kSuper;
  constexpr auto kHalf = ScaleStore::kHalf;
  switch (id) {
    case kInt8:
      return {id, "int8", kBlock, 32, 8, 0, 128, false, 32, kHalf, GroupStore::kNone, false};
    case kInt4:
      return {id, "int4", kBlock, 32, 4, 0, 8, false, 32, kHalf, GroupStore::kNone, false};
    case kInt4Min:
      return {id, "int4_min", kBlock, 32, 4, 0, 0, false, 32, kHalf, GroupStore::kNone, true};
    case kInt5:
      return {id, "int5", kBlock, 32, 4, 1, 16, false, 32, kHalf, GroupStore::kNone, false};
    case kInt5Min:
      return {id, "int5_min", kBlock, 32, 4, 1, 0, false, 32, kHalf, GroupStore::kNone, true};
    case kTable4:
      return {id, "table4", kBlock, 32, 4, 0, 0, true, 32, kHalf, GroupStore::kNone, false};
    case kTable4E8M0:
      return {id, "table4_e8m0", kBlock, 32, 4, 0, 0, true, 32, ScaleStore::kE8M0, GroupStore::kNone, false};
    case kTable4UE4M3:
      return {id, "table4_ue4m3", kBlock, 64, 4, 0, 0, true, 16, ScaleStore::kUE4M3, GroupStore::kNone, false};
    case kInt1:
      return {id, "int1", kBlock, 128, 1, 0, 1, false, 128, kHalf, GroupStore::kNone, false, 2};
    case kInt2:
      return {id, "int2", kBlock, 64, 2, 0, 1, false, 64, kHalf, GroupStore::kNone, false};
    case kInt2Wide:
      return {id, "int2_wide", kBlock, 128, 2, 0, 1, false, 128, kHalf, GroupStore::kNone, false};
    case kInt2Super:
      return {id, "int2_super", kSuper, 256, 2, 0, 0, false, 16, kHalf, GroupStore::kNibbles, true};
    case kInt3Super:
      return {id, "int3_super", kSuper, 256, 2, 1, 4, false, 16, kHalf, GroupStore::kSigned8, false};
    case kInt4Super:
      return {id, "int4_super", kSuper, 256, 4, 0, 0, false, 32, kHalf, GroupStore::kUnsigned8, true};
    case kInt5Super:
      return {id, "int5_super", kSuper, 256, 4, 1, 0, false, 32, kHalf, GroupStore::kUnsigned8, true};
    case kInt6Super:
      return {id, "int6_super", kSuper, 256, 4, 2, 32, false, 16, kHalf, GroupStore::kSigned8, false};
    case kTable4Super:
      return {id, "table4_super", kSuper, 256, 4, 0, 0, true, 32, kHalf, GroupStore::kSigned8, false};
    case kTernary2:
      return {id, "ternary2", kSuper, 256, 2, 0, 1, false, 256, kHalf, GroupStore::kNone, false};
    case kTernary1_6:
      return {id, "ternary1_6", kSuper, 256, 0, 0, 1, false, 256, kHalf, GroupStore::kNone, false};
    case kBinary:
      return {id, "binary", kSuper, 256, 1, 0, 1, false, 256, kHalf, GroupStore::kNone, false, 2};
    case kUnpacked:
      return {id, "unpacked", kSuper, 256, 8, 0, 128, false, 16, ScaleStore::kFloat, GroupStore::kSigned8, false};
    default:
      return {};
  }
}

/// Whether matrices of a layout may have one scale throughout, which allows to sum over all of k before any scale.
constexpr bool is_ternary_layout(LayoutId id) {
  return id == LayoutId::kTernary2 || id == LayoutId::kTernary1_6 || id == LayoutId::kBinary;
}

/// The 16 values of a table layout's codes.
using CodeTable = std::array<std::int8_t, 16>;
/// IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl).
constexpr CodeTable kIq4Table{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
/// MXFP4 and NVFP4: twice the E2M1 values.
constexpr CodeTable kE2M1Table{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// A weight matrix, packed.
struct PackedMatrix {
  LayoutId layout = LayoutId::kF32;
  const Format* format = nullptr;  // what it was packed from
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t panel_bytes = 0;
  std::span<std::uint8_t> bytes;  // panels() * panel_bytes, in `storage` or in memory that holds many matrices
  Buffer storage;
  bool uniform_scale = false;  // ternary layouts: every block of the matrix has the scale `scale`
  float scale = 0.0f;
  // A scale behind a tensor's blocks (Format::tail_bytes) is a float, those of a panel are halves: value = factor *
  // (block_scale * scale in the block) * code, one of both being 1.
  float block_scale = 1.0f;  // within the panels' scales
  float factor = 1.0f;       // not in the panels

  std::int64_t panels() const { return (n + kPanelRows - 1) / kPanelRows; }
  const std::uint8_t* panel(std::int64_t p) const { return bytes.data() + p * panel_bytes; }
};

/// The layout that holds a format; throws UnsupportedModelError for formats that are never weights.
LayoutId layout_for(const Format& format);
std::string_view layout_name(LayoutId id);
/// Bytes of one panel of a matrix with k columns.
std::int64_t panel_bytes(LayoutId layout, const Format& format, std::int64_t k);

/// A matrix without its bytes: what is needed to plan with it.
PackedMatrix describe_matrix(const Format& format, std::int64_t n, std::int64_t k);
/// An empty matrix of the right size with memory of its own, to be filled panel by panel.
PackedMatrix make_matrix(const Format& format, std::int64_t n, std::int64_t k);
/// Tells a matrix, before it is packed, the scale behind its tensor's blocks. Returns whether it is finite.
bool set_tensor_scale(PackedMatrix& matrix, std::span<const std::uint8_t> tail);
/// Packs rows 16 * panel .. of the matrix from their bytes in the file, [rows, row bytes]; rows beyond n are padding.
/// Returns false when a scale is NaN, infinite, or too large for its codes, or a code means nothing; find_fault says
/// which. Different panels may be packed by different threads.
bool pack_panel(PackedMatrix& matrix, std::int64_t panel, std::span<const std::uint8_t> rows);
/// The same for every format through decoded codes: the definition of what pack_panel writes.
bool pack_panel_by_codes(PackedMatrix& matrix, std::int64_t panel, std::span<const std::uint8_t> rows);
/// What is wrong with rows that pack_panel has refused, and where: "a code that means nothing in row 3, column 17";
/// rows count from `first_row`.
std::string find_fault(const PackedMatrix& matrix, std::int64_t first_row, std::span<const std::uint8_t> rows);
/// Decodes a panel of a kNative matrix to the kUnpacked layout, k / 256 blocks of layout_spec(kUnpacked).block_bytes().
void unpack_native_panel(const PackedMatrix& matrix, std::int64_t panel, std::uint8_t* out);
/// After all panels: finds out whether a ternary matrix has one scale everywhere.
void finish_matrix(PackedMatrix& matrix);
/// Row `row` as k floats, exactly what the format's own dequantisation gives.
void dequantize_row(const PackedMatrix& matrix, std::int64_t row, float* out);

}  // namespace sterna
