/// Arguments of the kernels: plain structs whose pointers are device memory. What they compute is what the CPU's steps
/// of the same names do (cpu/steps.h); how sums are taken stands with each kernel.
#pragma once

#include <cstdint>

#include "plan/kinds.h"
#include "plan/token_logit.h"
#include "quant/layout.h"

namespace sterna::cuda {

/// A matrix [n, k] in device memory: panels of 16 rows, in the layout's order of the device (kernels/fragments.cuh).
struct DeviceMatrix {
  const std::uint8_t* panels;
  std::int64_t n, k;
  std::int64_t panel_bytes;
  std::int64_t matrix_bytes;  // from one expert's or head's matrix to the next
  float factor;               // of every value, not in the panels
  LayoutId layout;
};

/// What a table has a row for.
struct EmbedArguments {
  DeviceMatrix w;
  EmbeddedIds ids;
  bool is_first;  // of tokens: given embeddings replace its rows; other tables have row 0 for them
  Rows y;
};

/// y = rms_norm of each of `heads` parts of n floats of a row (+ residual).
struct NormArguments {
  Rows x, residual, y;  // residual's data null: none
  const float* weight;  // null: none
  std::int64_t heads, n;
  float eps;
};

/// y = layer_norm of each of `heads` parts of n floats of a row.
struct LayerNormArguments {
  Rows x, y;
  const float* weight;  // null: none; of head h at h * head_step, as the bias
  const float* bias;    // null: none
  std::int64_t heads, n, head_step;
  float eps;
};

/// y = a + b, or a * b. Without weight, period is 1 (one number a row) or n.
struct BinaryArguments {
  bool multiplies;
  Rows a, b, y;
  const float* weight;  // instead of b: repeated along the row
  std::int64_t period;  // floats of weight or of a row of b: n, or fewer
  std::int64_t n;
};

/// y += scale * factor * b a x, in place, for the rows of sequences that use the adapter (arXiv:2106.09685).
struct LoraArguments {
  Rows x, y;
  const float* a;  // [rank][k]
  const float* b;  // [rank][n], transposed
  std::int64_t k, n, rank;
  std::int32_t adapter;
  float factor;
  float* products;  // [rows of y][rank], between the two kernels: of a and x
};

/// y = x * operand (kScale), or x within -operand .. operand (kClamp).
struct ScaleArguments {
  Rows x, y;
  std::int64_t n;
  float operand;
};

struct ActivationArguments {
  Rows x, y;
  std::int64_t n;
  ActivationKind kind;
};

struct GluArguments {
  Rows gate, up, y;
  std::int64_t n;
  ActivationKind kind;
};

/// Copies n floats of each row (kCopy), or of each of `heads` parts of a row, which lie apart; kTakeRows: row i of y is
/// row output_rows[i] of x.
struct CopyArguments {
  Rows x, y;
  std::int64_t n;
  std::int64_t heads, x_apart, y_apart;
};

/// y = n floats of each row of row_floats in the batch's `received`, from `first` on.
struct ReceiveArguments {
  Rows y;
  std::int64_t row_floats, first, n;
};

/// Row i of y stands for the sequence whose last row is output_rows[i] of x.
struct PoolArguments {
  Rows x, y;
  std::int64_t n;
  PoolKind kind;
};

/// Cosines and sines of every row's position, [T][pairs] each.
struct RopeTableArguments {
  const float* frequencies;       // [pairs]
  const float* long_frequencies;  // of long sequences; null: the same
  std::int32_t pairs;
  float factor;
  Rows cosines, sines;
};

/// How heads are normalised and rotated; no norm and no rotation where the pointers are null.
struct HeadTransform {
  const float* norm;
  float eps;
  Rows cosines, sines;
  std::int32_t rotary_dim;
  bool interleaved;
};

struct RopeArguments {
  Rows x, y;
  std::int32_t heads, head_dim;
  HeadTransform transform;
};

/// A layer's part of the pages of its pool. A page of a head holds keys [64][head_dim], in a q8_0 cache followed by
/// binary16 scales [64][head_dim / 32 rounded up], then values [64][value_stride] and their scales likewise.
struct KvLayer {
  std::uint8_t* const* pages;  // of the pool, by number
  std::int64_t offset;         // of the layer in a page
  std::int64_t head_bytes;
  std::int64_t value_offset;  // of the values within a head's bytes
  std::int32_t pool;
  std::int32_t num_heads;
  std::int32_t head_dim;
  std::int32_t value_dim;
  std::int32_t value_stride;
  bool latent;  // no values are stored: they are the beginnings of the keys
  KvType type;
};

/// Writes K and V of every row to the cache, and the transformed queries to q_out.
struct StoreKvArguments {
  Rows q, k, v, q_out;  // q_out's data null: queries stay as they are
  std::int32_t query_heads;
  KvLayer layer;
  HeadTransform query_transform, key_transform;
};

/// A relative bias by distance: y[head][farthest + d] is that of a key d positions behind the row, d from -farthest to
/// farthest; further keys have the bias of the farthest. buckets[farthest + d]: the row of w, [buckets, heads].
struct RelativeBiasArguments {
  DeviceMatrix w;
  const std::int32_t* buckets;
  std::int64_t farthest;
  float* y;
};

/// The largest magnitude of each of few rows, as the bits of a float. Rows meet weights as numbers whose scale comes
/// from it (PreparedForm), so that the kernel that writes rows cannot write them like that. It leaves this, and matmuls
/// prepare few rows themselves; no kernel is launched for it.
struct RowMaxima {
  std::uint32_t* data;     // [most_rows], zero when a run begins; null: none
  std::int32_t most_rows;  // of launches that it is for

  constexpr bool are_for(std::int64_t rows) const { return data != nullptr && rows <= most_rows; }
};

/// Elements of a head's keys and values at most: sums of a row are kept in registers.
constexpr std::int32_t kMaxHeadDim = 576;
/// Experts of a route at most: its scores, and those of as many groups, are in shared memory.
constexpr std::int64_t kMaxExperts = 2048;
/// Bytes of shared memory that a block can have on every architecture: those of sm_75.
constexpr std::int64_t kLeastSharedBytes = 64 << 10;

struct AttendArguments {
  Rows q, y;
  RowMaxima maxima;  // of y
  std::int32_t query_heads;
  KvLayer layer;
  float scale, softcap;
  std::int64_t window;         // keys seen, the own one included; 0: all
  std::int64_t chunk;          // keys are seen from the last multiple of it on; 0: all
  bool causal;                 // otherwise keys at most window / 2 positions away, before and after
  bool cross;                  // all keys of the sequence that was encoded for this one
  const float* relative_bias;  // as RelativeBiasArguments::y; null: none
  std::int64_t farthest;
  const float* sinks;   // [query head]; null: none
  const float* slopes;  // [query head], of ALiBi; null: none
  double temperature_scale;
  std::int64_t temperature_length, temperature_offset;
  /// What blocks that share a row's spans leave, [row][query head][max_spans][2 + value_dim]; null: none do.
  float* partial;
  std::int64_t partial_room;  // rows times spans (of 256 keys) that there is room for
  std::int64_t max_spans;     // of a row, for which there is room in a launch; the launcher says it
  std::int32_t* arrivals;     // [row][query head], zero between runs; with partial
};

/// Rows for matmuls. Quantised weights meet binary16 numbers: x times a power of two, or codes of one scale per row;
/// binary16 and bfloat16 weights meet the sum of two such numbers; float weights meet the floats.
enum class PreparedForm : std::uint8_t {
  kHalf,        // x * 2^e rounded
  kInt8,        // codes -127 .. 127 as binary16, scale absmax / 127
  kTwoHalves,   // high and low part of x * 2^e
  kTwoBfloats,  // high and low part of x
  kFloat,
};

/// Prepared rows, in parts that lie one behind the other: values [max_rows][k], for two-part forms the low parts, then
/// scales [max_rows], then for kHalf and kInt8 the float sums of each 16 values, [max_rows][sum_stride]. k is padded to
/// a multiple of 32 with zeros. A row is its values times its scale.
struct PreparedRows {
  std::uint8_t* base;
  std::int64_t k;
  std::int64_t max_rows;
  PreparedForm form;

  static constexpr std::int64_t align(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }
  constexpr bool has_low() const { return form == PreparedForm::kTwoHalves || form == PreparedForm::kTwoBfloats; }
  constexpr bool has_sums() const { return form == PreparedForm::kHalf || form == PreparedForm::kInt8; }
  constexpr std::int64_t row_bytes() const { return k * (form == PreparedForm::kFloat ? 4 : 2); }
  constexpr std::int64_t sum_stride() const { return (k / 16 + 3) / 4 * 4; }
  constexpr std::int64_t low_offset() const { return align(max_rows * row_bytes()); }
  constexpr std::int64_t scale_offset() const { return low_offset() * (has_low() ? 2 : 1); }
  constexpr std::int64_t sum_offset() const { return scale_offset() + align(max_rows * 4); }
  constexpr std::int64_t bytes() const { return sum_offset() + (has_sums() ? align(max_rows * sum_stride() * 4) : 0); }
};

/// Norms (where asked for) and prepares rows. Row r of the result is part r % parts of row r / parts of x, parts of k
/// floats each; or with `pairs`, row p is that of the sorted pair p, times its weight where there are weights.
struct PrepareArguments {
  Rows x;
  const float* norm;  // of the rows; null: none
  float eps;
  std::int64_t k;  // floats of a part
  std::int64_t parts;
  const std::int32_t* pairs;  // null: none; see ExpertPairs
  std::int64_t used;          // experts of a row
  bool is_sorted;             // x has a row for each sorted pair, instead of each token
  Rows weights;               // data null: none
  PreparedRows to;
};

/// The pairs (row, rank) of a batch, numbered row * used + rank, sorted by expert. groups[0] = their count; then for
/// each group: expert, first of its sorted pairs, how many.
struct ExpertPairs {
  std::int32_t* groups;  // [1 + 3 * max_groups]
  std::int32_t* pairs;   // [max_pairs], by place among the sorted: the pair
  std::int32_t* places;  // [max_pairs], by pair: its place
  std::int64_t num_experts, used, max_pairs;

  constexpr std::int64_t max_groups() const { return num_experts < max_pairs ? num_experts : max_pairs; }
};

/// Shared memory in which a block of a matmul prepares `rows` rows of k floats. Of each of its 8 parts of k, of at most
/// preparing_room(k) values, a row has the values, the sums of each 16, and 32 bytes that spread rows over the banks.
constexpr std::int64_t preparing_room(std::int64_t k) { return (k + 2047) / 2048 * 256; }
constexpr std::int64_t preparing_bytes(std::int64_t k, std::int64_t rows) {
  return 8 * rows * (preparing_room(k) * 2 + preparing_room(k) / 4 + 32);
}
/// Matmuls of few rows need no more shared memory than this, beside what they prepare rows in.
constexpr std::int64_t kMostMatmulBytes = 80 << 10;
/// So many rows of k floats are prepared by the matmul itself: those that leave room for a second block on a large
/// multiprocessor. A block can have `shared_bytes` bytes.
constexpr std::int32_t most_rows_to_prepare(std::int64_t k, std::int64_t shared_bytes) {
  constexpr std::int64_t kMostBytes = 40 << 10, kMostRows = 8;
  const std::int64_t left = shared_bytes - kMostMatmulBytes;
  const std::int64_t rows = (left < kMostBytes ? left : kMostBytes) / preparing_bytes(k, 1);
  return static_cast<std::int32_t>(rows < 0 ? 0 : rows < kMostRows ? rows : kMostRows);
}

/// What prepared rows become: y = w x (+ bias) (+ residual).
struct Product {
  DeviceMatrix w;
  const float* bias;  // [n], of experts [experts][n]; null: none
  Rows residual;      // data null: none
  Rows y;
};
constexpr int kMaxProducts = 4;

/// The products of the same rows, or activation(w x) * (up x) in place of w x; which matrix meets which rows:
enum class MatmulKind : std::uint8_t {
  kPlain,    // all rows
  kHeads,    // matrix h meets prepared rows r * heads + h; its results are floats h * n .. of row r of y
  kExperts,  // matrix e meets the sorted pairs of expert e; a row of y for each
};
struct MatmulArguments {
  MatmulKind kind;
  Product products[kMaxProducts];
  std::int32_t num_products = 1;  // more: kPlain, without up, all y of as many rows
  DeviceMatrix up;                // panels null: none
  const float* up_bias;
  ActivationKind glu;
  std::int64_t heads;  // kHeads
  ExpertPairs pairs;   // kExperts
  PreparedRows x;      // base null: of floats, those of rows
  Rows rows;           // x before it is prepared, with maxima or as floats; of k floats
  RowMaxima maxima;    // of rows
  RowMaxima y_maxima;  // of the first product's y
};

/// Logits of all experts -> ids (as floats) and weights of the `used` best, the best first; see cpu/steps_experts.h.
struct RouteArguments {
  Rows x, experts, weights;
  std::int64_t num_experts, used;
  bool is_sigmoid, normalize;
  float factor;
  const float* bias;  // null: none
  std::int64_t groups, groups_used;
  bool two_best;
};

struct SortPairsArguments {
  Rows experts;
  ExpertPairs pairs;
};

/// y = sum over ranks, ascending, of weight * x (+ residual): each product is rounded, then added.
struct CombineArguments {
  Rows x;  // by place among the sorted pairs
  Rows weights, residual, y;
  ExpertPairs pairs;
  std::int64_t n;
};

struct ShortConvArguments {
  Rows x, y;
  const float* w;     // [kernel][channels]
  const float* bias;  // null: none
  std::int32_t kernel;
  std::int64_t channels;
  std::int64_t state_offset;  // floats into a half
};

/// At most, as a state is kept in registers: state_dim of a scan, key_dim of a delta rule.
constexpr std::int32_t kMaxScanStateDim = 256;
constexpr std::int32_t kMaxDeltaKeyDim = 256;

struct SsmScanArguments {
  Rows x, dt, b, c, y;
  const float* a;
  const float* d;
  bool per_channel;  // a has a row for each head, whose dimension is 1
  std::int32_t heads, head_dim, groups, state_dim;
  std::int64_t state_offset;
};

struct DeltaRuleArguments {
  Rows q, k, v, g, beta, y;
  std::int32_t key_heads, key_dim, value_heads, value_dim;
  std::int64_t state_offset;
};

/// As many of a row's largest logits can be found.
constexpr std::int32_t kMostLargest = 256;

/// Of each output as many of its n logits as the batch asks for (DeviceBatch::largest), by falling logit and rising
/// token: an entry whose token is their count, then they; no more than `most`. None where a logit is not finite.
struct LargestArguments {
  Rows logits;
  std::int64_t n;
  std::uint32_t* maxima;  // [outputs][groups], working room
  std::int64_t groups;    // of 32 logits
  TokenLogit* largest;    // [outputs][1 + most]
  std::int64_t most;      // up to kMostLargest
};

/// Panels as the core packs them (quant/layout.h) to panels in the device's order (kernels/fragments.cuh).
struct RepackArguments {
  const std::uint8_t* from;
  std::uint8_t* to;
  std::int64_t panels, k;
  LayoutId layout;  // of the core; that of the device is device_layout(layout)
};

/// The layout that holds a matrix on the device: 1.6 bits become 2.
constexpr LayoutId device_layout(LayoutId layout) {
  return layout == LayoutId::kTernary1_6 ? LayoutId::kTernary2 : layout;
}
constexpr bool is_dense(LayoutId layout) {
  return layout == LayoutId::kF32 || layout == LayoutId::kF16 || layout == LayoutId::kBF16;
}
/// k as the device holds it: dense matrices are padded with zeros.
constexpr std::int64_t device_k(LayoutId layout, std::int64_t k) { return is_dense(layout) ? (k + 31) / 32 * 32 : k; }
/// Bytes of a panel in one of the device's layouts.
constexpr std::int64_t device_panel_bytes(LayoutId layout, std::int64_t k) {
  if (is_dense(layout)) return device_k(layout, k) * kPanelRows * (layout == LayoutId::kF32 ? 4 : 2);
  const LayoutSpec spec = layout_spec(layout);
  return k / spec.block * spec.block_bytes();
}

}  // namespace sterna::cuda
