/// The kernels of one instruction set as plain function pointers. Plans are built from a table and never ask which
/// level it is.
#pragma once

#include <cstdint>

#include "cpu/recurrent_kernels.h"
#include "cpu/wide_tile.h"
#include "plan/kinds.h"
#include "quant/layout.h"

namespace sterna::cpu {

/// Bytes from a weight panel's start that are asked for before a step begins; kernels for one row ask as far ahead.
constexpr int kWarmBytes = 6144;
constexpr int kMaxTileRows = 8;
constexpr int kMaxGemmWidth = 32;

/// Up to kMaxTileRows token rows, prepared for matmuls: rows interleaved so that one displacement reaches each.
struct ActivationTile {
  std::int8_t* codes = nullptr;     // [k / 4][rows][4]; for gemm kernels code + 128, unsigned
  float* scales = nullptr;          // [k / block][rows], block as the activation rule says
  std::int32_t* sums16 = nullptr;   // [k / 16][rows], sums of codes; for gemm kernels [k / 32][rows], two int16 each
  std::int32_t* sums32 = nullptr;   // [k / 32][rows]; not for gemm kernels
  std::int32_t* pairs32 = nullptr;  // [k / 64][rows], two int16 each: these sums for gemm kernels
  float* scaled_sums = nullptr;     // [k / 32][rows], the sum of 32 codes times their scale
  float* values = nullptr;          // [k][rows], for dense weights, where nothing is quantised
  int rows = 0;
};

/// out[row][r] = the dot products of 16 weight rows with each row of the tile. The arithmetic is in kernels/matmul.h.
using PanelKernel = void (*)(const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile, float* out);

/// Fills rows at .. at + 15 of a wide tile from a panel.
using UnpackKernel = void (*)(const std::uint8_t* panel, std::int64_t k, const WideTile& tile, int at);
/// out[row][r] = the dot products of the wide tile's rows with each row of the activations, `width` floats a row.
using GemmKernel = void (*)(const WideTile& w, std::int64_t k, const ActivationTile& tile, float* out);

/// Results of one tile of rows on their way to where they are wanted: y = activation(gate) * up + residual, of which
/// only gate must be there; biases are added to gate and up. Row i of an array is `stride` floats behind row i - 1.
struct FinishArgs {
  int rows;
  int width;  // floats from one row of gate and up to the next, a multiple of 16
  int count;  // floats of a row that are wanted, at most width
  const float* gate;
  const float* up;
  const float* bias;     // null: none
  const float* up_bias;  // null: none
  const float* residual;
  std::int64_t residual_stride;
  float* y;
  std::int64_t y_stride;
};

/// Queries of one call of `attend`.
constexpr int kMaxAttentionQueries = 32;

/// What one call of `attend` computes: the attention of rows x heads queries that share keys.
struct AttendArgs {
  const float* const* queries = nullptr;  // [row][head], head_dim floats each
  float* const* outputs = nullptr;        // [row][head], value_dim floats each
  int rows = 1;
  int heads = 1;
  int head_dim = 0;
  int value_dim = 0;
  const float* scales = nullptr;            // [row]
  float softcap = 0.0f;                     // 0: none
  const float* slopes = nullptr;            // [head], of ALiBi; null: none
  const float* sinks = nullptr;             // [head]: scores of a key without value that every row sees; null: none
  const std::int64_t* positions = nullptr;  // [row], for slopes
  const float* const* biases = nullptr;     // [row][head]: of each key of the tiles, from biases_from on; null: none
  std::int64_t biases_from = 0;
  /// [row]: keys first .. last, both included. A group of rows sees what each of its rows sees.
  const std::int64_t* first_keys = nullptr;
  const std::int64_t* last_keys = nullptr;
  /// By page of the sequence, from the smallest first key to the largest last key: this layer's and head's keys,
  /// [head_dim][64], and values, [64][value_stride]; in a q8_0 cache each is followed by scales (see KvStorage).
  const std::uint8_t* const* key_tiles = nullptr;
  /// Null: the values are the first value_dim elements of the keys.
  const std::uint8_t* const* value_tiles = nullptr;
  int value_stride = 0;      // value_dim rounded up to 16
  float* scratch = nullptr;  // attend_scratch(queries, value_dim) floats
};

/// Floats of scratch that `attend` needs, also where the values of a page have to be turned out of its keys.
constexpr std::int64_t attend_scratch(std::int64_t queries, std::int64_t value_dim) {
  const std::int64_t stride = (value_dim + 15) / 16 * 16;
  return queries * (2 * stride + 64) + 64 * stride;
}

struct KernelTable {
  const char* isa;
  int tile_rows;
  int few_rows;  // above them weights are unpacked first and meet many tiles; measured

  /// [layout][rows - 1]; null where rows > tile_rows.
  PanelKernel panel[static_cast<int>(LayoutId::kCount)][kMaxTileRows];
  /// Integer sums over all of k, as floats, for matrices with one scale: [layout][rows - 1] of is_ternary_layout.
  PanelKernel panel_sum[static_cast<int>(LayoutId::kCount)][kMaxTileRows];

  /// Matmuls of many rows: rows and panels of a tile; zero where the level has none of its own.
  int gemm_rows;
  int gemm_panels;
  UnpackKernel unpack[static_cast<int>(LayoutId::kCount)];
  /// [layout][rows - 1]; null where rows > gemm_rows.
  GemmKernel gemm[static_cast<int>(LayoutId::kCount)][kMaxTileRows];
  /// Integer sums over all of k, as floats, for ternary matrices with one scale: [rows - 1].
  GemmKernel gemm_sum[kMaxTileRows];

  void (*rms_norm)(const float* x, const float* weight, float* y, std::int64_t n, float eps);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, std::int64_t n, float eps);
  /// Row `row` of the tile from k floats; block is 32, 256 or k. The scale of a block is written once per scale_every
  /// k.
  void (*quantize)(const float* x, std::int64_t k, std::int64_t block, std::int64_t scale_every,
                   const ActivationTile& tile, int row);
  /// The same for gemm kernels: codes + 128, sums in pairs.
  void (*quantize_gemm)(const float* x, std::int64_t k, std::int64_t block, std::int64_t scale_every,
                        const ActivationTile& tile, int row);
  void (*add)(const float* a, const float* b, float* y, std::int64_t n);
  void (*mul)(const float* a, const float* b, float* y, std::int64_t n);
  void (*scale)(const float* x, float factor, float* y, std::int64_t n);
  void (*clamp)(const float* x, float limit, float* y, std::int64_t n);
  /// t[j] = (row j of a, [r][n], times x) * factor.
  void (*lora_down)(const float* x, const float* a, std::int64_t n, std::int64_t r, float factor, float* t);
  /// y[i] += t[j] * b[j][i] for one j after the other; rows of b, [r], are `stride` floats apart.
  void (*lora_up)(const float* t, std::int64_t r, const float* b, std::int64_t stride, float* y, std::int64_t n);
  void (*activation[kNumActivations])(const float* x, float* y, std::int64_t n);
  void (*glu[kNumGates])(const float* gate, const float* up, float* y, std::int64_t n);
  void (*finish)(const FinishArgs& args);
  void (*finish_glu[kNumGates])(const FinishArgs& args);
  /// Rotates pairs of each head in place: (i, i + rotary / 2), or (2i, 2i + 1) when interleaved.
  void (*rope)(float* x, int num_heads, int head_dim, int rotary_dim, bool interleaved, const float* cosines,
               const float* sines);
  /// n floats to binary16, ties to even.
  void (*to_half)(const float* x, std::uint16_t* y, std::int64_t n);
  /// n elements of a key or value row to codes [n] and binary16 scales, one per kKvGroup elements.
  void (*to_q8_0)(const float* x, std::int8_t* codes, std::uint16_t* scales, std::int64_t n);
  void (*short_conv)(const ConvArgs& args);
  void (*ssm_scan)(const SsmArgs& args);
  void (*delta_rule)(const DeltaArgs& args);
  void (*attend_f16)(const AttendArgs& args);
  void (*attend_f32)(const AttendArgs& args);
  void (*attend_q8_0)(const AttendArgs& args);
};

}  // namespace sterna::cpu
