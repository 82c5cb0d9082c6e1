/// Matmuls: rows are prepared once (norm, quantisation, interleaving), then weight panels meet tiles of rows.
#include <algorithm>
#include <optional>

#include "cpu/steps.h"

namespace sterna::cpu {
namespace {

/// As far as the kernels ask ahead: where they begin to.
constexpr std::int64_t kWarmBytes = 4096;

std::int64_t align(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

bool is_sum(const PackedMatrix& w, const TileSpace& tiles) { return w.uniform_scale && tiles.block == tiles.k; }

/// Integer sums become results where one scale holds for all of a row.
void scale_sums(const PackedMatrix& w, const ActivationTile& tile, float* values, int width) {
  for (int row = 0; row < tile.rows; ++row) {
    const float scale = w.scale * tile.scales[row];
    for (int r = 0; r < width; ++r) values[row * width + r] *= scale;
  }
}

/// A matrix for few rows: the kernels decode a panel on the way.
class FewRows {
 public:
  FewRows(const PackedMatrix& w, const TileSpace& tiles, const StepContext& context, std::uint8_t* scratch)
      : w_(w), sum_(is_sum(w, tiles)), scratch_(scratch) {
    const LayoutId layout = w.layout == LayoutId::kNative ? LayoutId::kUnpacked : w.layout;
    kernels_ = context.kernels->panel[static_cast<int>(layout)];
    if (sum_) kernels_ = context.kernels->panel_sum[w.layout == LayoutId::kTernary1_6 ? 1 : 0];
  }

  static int panels(const KernelTable&) { return 1; }

  void select(std::int64_t panel) {
    if (w_.layout == LayoutId::kNative) {
      unpack_native_panel(w_, panel, scratch_);
      panel_ = scratch_;
    } else {
      panel_ = w_.panel(panel);
    }
  }

  /// values[row][16] of the selected panel.
  void multiply(const ActivationTile& tile, float* values) const {
    kernels_[tile.rows - 1](panel_, w_.k, tile, values);
    if (sum_) scale_sums(w_, tile, values, kPanelRows);
  }

 private:
  const PackedMatrix& w_;
  const bool sum_;
  std::uint8_t* scratch_;
  const PanelKernel* kernels_;
  const std::uint8_t* panel_ = nullptr;
};

/// A matrix for many rows: panels are unpacked side by side, once for all of them.
class ManyRows {
 public:
  ManyRows(const PackedMatrix& w, const TileSpace& tiles, const StepContext& context, std::uint8_t* scratch)
      : w_(w),
        table_(*context.kernels),
        sum_(is_sum(w, tiles)),
        layout_(w.layout == LayoutId::kNative ? LayoutId::kUnpacked : w.layout) {
    const int width = table_.gemm_panels * kPanelRows;
    const GemmKind kind = gemm_kind(layout_, sum_);
    tile_ = WideTile::at(scratch, kind, w.k, width);
    native_ = scratch + align(wide_tile_bytes(kind, w.k, width));
  }

  static int panels(const KernelTable& kernels) { return kernels.gemm_panels; }

  void select(std::int64_t first_panel) {
    for (int p = 0; p < table_.gemm_panels; ++p) {
      // A last panel without a neighbour stands in for it; its results are not used.
      const std::int64_t index = std::min(first_panel + p, w_.panels() - 1);
      const std::uint8_t* panel = w_.panel(index);
      if (w_.layout == LayoutId::kNative) {
        unpack_native_panel(w_, index, native_);
        panel = native_;
      }
      table_.unpack[static_cast<int>(layout_)](panel, w_.k, tile_, p * kPanelRows);
    }
  }

  /// values[row][16 * panels] of the selected panels.
  void multiply(const ActivationTile& tile, float* values) const {
    if (sum_) {
      table_.gemm_sum[tile.rows - 1](tile_, w_.k, tile, values);
      scale_sums(w_, tile, values, tile_.width);
    } else {
      table_.gemm[static_cast<int>(layout_)][tile.rows - 1](tile_, w_.k, tile, values);
    }
  }

 private:
  const PackedMatrix& w_;
  const KernelTable& table_;
  const bool sum_;
  const LayoutId layout_;
  WideTile tile_;
  std::uint8_t* native_;
};

/// Items begin .. end - 1 of one part, an item being Weights::panels() panels, against all tiles.
template <class Weights>
void run_items(const MatmulStep& step, const TileSpace& tiles, const StepContext& context, const MatmulPart& part,
               std::int64_t begin, std::int64_t end, std::int64_t rows) {
  const KernelTable& kernels = *context.kernels;
  const TileForm form = tile_form(kernels, rows);
  const int width = Weights::panels(kernels) * kPanelRows;
  Buffer& scratch = context.scratch->unpacked;
  Weights gate(*part.w, tiles, context, scratch.data());
  std::optional<Weights> up;
  if (part.up != nullptr) up.emplace(*part.up, tiles, context, scratch.data() + scratch.size() / 2);
  const auto finish = up ? kernels.finish_glu[static_cast<int>(step.glu)] : kernels.finish;

  alignas(64) float gate_values[kMaxTileRows * kMaxGemmWidth];
  alignas(64) float up_values[kMaxTileRows * kMaxGemmWidth];
  FinishArgs result{};
  result.width = width;
  result.gate = gate_values;
  result.up = up_values;
  result.residual_stride = step.residual.stride;
  result.y_stride = part.y.stride;
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t feature = item * width;
    result.count = static_cast<int>(std::min<std::int64_t>(width, part.w->n - feature));
    result.bias = part.bias == nullptr ? nullptr : part.bias + feature;
    result.up_bias = part.up_bias == nullptr ? nullptr : part.up_bias + feature;
    gate.select(item * Weights::panels(kernels));
    if (up) up->select(item * Weights::panels(kernels));
    for (std::int64_t row = 0; row < rows; row += form.rows) {
      const ActivationTile tile = tiles.tile(row / form.rows, rows, form);
      gate.multiply(tile, gate_values);
      if (up) up->multiply(tile, up_values);
      result.rows = tile.rows;
      result.residual = step.residual.data == nullptr ? nullptr : step.residual.row(row) + feature;
      result.y = part.y.row(row) + feature;
      finish(result);
    }
  }
}

/// Items of all parts of a step, an item being `at_once` panels.
std::int64_t item_count(const MatmulStep& step, std::int64_t at_once) {
  std::int64_t total = 0;
  for (const MatmulPart& part : step.parts) total += (part.w->panels() + at_once - 1) / at_once;
  return total;
}

template <class Weights>
void share_panels(const MatmulStep& step, const TileSpace& tiles, const StepContext& context, std::int64_t rows) {
  const std::int64_t at_once = Weights::panels(*context.kernels);
  const std::int64_t total = item_count(step, at_once);
  // Few rows stream through memory: bites long enough for that. With many rows an item is work enough.
  const std::int64_t bite = rows > kMaxFewRows ? 1 : total / (32 * context.num_workers) + 1;
  context.share(total, bite, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t first = 0;
    for (const MatmulPart& part : step.parts) {
      const std::int64_t last = first + (part.w->panels() + at_once - 1) / at_once;
      if (begin < last && end > first) {
        run_items<Weights>(step, tiles, context, part, std::max(begin, first) - first, std::min(end, last) - first,
                           rows);
      }
      first = last;
    }
  });
}

/// Row `row` of step.x into its tile.
void prepare_row(const PrepareStep& step, const TileSpace& tiles, const StepContext& context, std::int64_t row,
                 std::int64_t rows) {
  const KernelTable& kernels = *context.kernels;
  const TileForm form = tile_form(kernels, rows);
  const std::int64_t k = tiles.k;
  const float* x = step.x.row(row);
  if (step.norm != nullptr) {
    float* normed = context.scratch->floats.as<float>();
    kernels.rms_norm(x, step.norm, normed, k, step.eps);
    x = normed;
  }
  const ActivationTile tile = tiles.tile(row / form.rows, rows, form);
  const int in_tile = static_cast<int>(row % form.rows);
  if (tiles.block == 0) {
    for (std::int64_t i = 0; i < k; ++i) tile.values[i * tile.rows + in_tile] = x[i];
  } else if (form.gemm) {
    kernels.quantize_gemm(x, k, tiles.block, tiles.scale_every, tile, in_tile);
  } else {
    kernels.quantize(x, k, tiles.block, tiles.scale_every, tile, in_tile);
  }
}

void multiply(const MatmulStep& step, const TileSpace& tiles, const StepContext& context) {
  const std::int64_t rows = context.rows(step.parts[0].y.outputs);
  if (tile_form(*context.kernels, rows).gemm) {
    share_panels<ManyRows>(step, tiles, context, rows);
  } else {
    share_panels<FewRows>(step, tiles, context, rows);
  }
}

}  // namespace

TileForm tile_form(const KernelTable& kernels, std::int64_t rows) {
  if (kernels.gemm_rows != 0 && rows > kMaxFewRows) return {kernels.gemm_rows, true};
  return {kernels.tile_rows, false};
}

std::int64_t TileSpace::tile_bytes(int tile_rows) const {
  if (block == 0) return align(k * tile_rows * 4);
  return align(k * tile_rows) + align(k / scale_every * tile_rows * 4) + align(k / 16 * tile_rows * 4) +
         align(k / 32 * tile_rows * 4) + align((k + 63) / 64 * tile_rows * 4);
}

std::int64_t TileSpace::bytes(const KernelTable& kernels, std::int64_t rows) const {
  const auto in_form = [&](const TileForm& form, std::int64_t count) {
    return (count + form.rows - 1) / form.rows * tile_bytes(form.rows);
  };
  const std::int64_t few = std::min(rows, kMaxFewRows);
  return std::max(in_form(tile_form(kernels, few), few), in_form(tile_form(kernels, rows), rows));
}

ActivationTile TileSpace::tile(std::int64_t index, std::int64_t rows, const TileForm& form) const {
  ActivationTile tile;
  tile.rows = static_cast<int>(std::min<std::int64_t>(form.rows, rows - index * form.rows));
  std::uint8_t* p = base + index * tile_bytes(form.rows);
  if (block == 0) {
    tile.values = reinterpret_cast<float*>(p);
    return tile;
  }
  tile.codes = reinterpret_cast<std::int8_t*>(p);
  p += align(k * form.rows);
  tile.scales = reinterpret_cast<float*>(p);
  p += align(k / scale_every * form.rows * 4);
  tile.sums16 = reinterpret_cast<std::int32_t*>(p);
  p += align(k / 16 * form.rows * 4);
  tile.sums32 = reinterpret_cast<std::int32_t*>(p);
  p += align(k / 32 * form.rows * 4);
  tile.pairs32 = reinterpret_cast<std::int32_t*>(p);
  return tile;
}

void run_prepare(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const PrepareStep*>(arguments);
  const std::int64_t count = context.rows(step.x.outputs);
  // Whole tiles, so that two workers do not write to the same cache lines.
  const int tile_rows = tile_form(*context.kernels, count).rows;
  const std::int64_t piece = (context.row_piece(count) + tile_rows - 1) / tile_rows * tile_rows;
  context.share(count, piece, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) prepare_row(step, step.tiles, context, row, count);
  });
}

void run_matmul(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const MatmulStep*>(arguments);
  multiply(step, step.tiles, context);
}

void run_fused_matmul(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const FusedMatmulStep*>(arguments);
  TileSpace tiles = step.matmul.tiles;
  tiles.base = context.scratch->tiles.data();
  const std::int64_t rows = context.rows(step.prepare.x.outputs);
  for (std::int64_t row = 0; row < rows; ++row) prepare_row(step.prepare, tiles, context, row, rows);
  multiply(step.matmul, tiles, context);
}

void warm_fused_matmul(const void* arguments, const StepContext& context) {
  const MatmulStep& step = static_cast<const FusedMatmulStep*>(arguments)->matmul;
  std::int64_t panel = stretch_begin(item_count(step, 1), context.worker, context.num_workers);
  for (const MatmulPart& part : step.parts) {
    if (panel < part.w->panels()) {
      const std::uint8_t* bytes = part.w->panel(panel);
      const std::int64_t count = std::min<std::int64_t>(part.w->panel_bytes, kWarmBytes);
      for (std::int64_t i = 0; i < count; i += 64) __builtin_prefetch(bytes + i);
      return;
    }
    panel -= part.w->panels();
  }
}

}  // namespace sterna::cpu
