#include "cpu/panel_matmul.h"

#include <algorithm>
#include <optional>

namespace sterna::cpu {
namespace {

std::int64_t align(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

bool is_sum(const PackedMatrix& w, const TileSpace& tiles) { return w.uniform_scale && tiles.block == tiles.k; }

/// Integer sums become results where one scale holds for all of a row; others, where the matrix has a factor.
void scale_results(const PackedMatrix& w, bool sum, const ActivationTile& tile, float* values, int width) {
  if (!sum && w.factor == 1.0f) return;
  for (int row = 0; row < tile.rows; ++row) {
    const float scale = sum ? w.scale * tile.scales[row] : w.factor;
    for (int r = 0; r < width; ++r) values[row * width + r] *= scale;
  }
}

/// A matrix for few rows: the kernels decode a panel on the way.
class FewRows {
 public:
  FewRows(const PackedMatrix& w, const TileSpace& tiles, const StepContext& context, std::uint8_t* scratch)
      : w_(w), sum_(is_sum(w, tiles)), scratch_(scratch) {
    const LayoutId layout = w.layout == LayoutId::kNative ? LayoutId::kUnpacked : w.layout;
    const KernelTable& table = *context.kernels;
    kernels_ = sum_ ? table.panel_sum[static_cast<int>(layout)] : table.panel[static_cast<int>(layout)];
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
    scale_results(w_, sum_, tile, values, kPanelRows);
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
    } else {
      table_.gemm[static_cast<int>(layout_)][tile.rows - 1](tile_, w_.k, tile, values);
    }
    scale_results(w_, sum_, tile, values, tile_.width);
  }

 private:
  const PackedMatrix& w_;
  const KernelTable& table_;
  const bool sum_;
  const LayoutId layout_;
  WideTile tile_;
  std::uint8_t* native_;
};

/// Items begin .. end - 1, an item being Weights::panels() panels, against all tiles.
template <class Weights>
void run_items(const MatmulPart& part, const TileSpace& tiles, const StepContext& context, std::int64_t begin,
               std::int64_t end, std::int64_t rows) {
  const KernelTable& kernels = *context.kernels;
  const TileForm form = tile_form(kernels, rows);
  const int width = Weights::panels(kernels) * kPanelRows;
  Buffer& scratch = context.scratch->unpacked;
  Weights gate(*part.w, tiles, context, scratch.data());
  std::optional<Weights> up;
  if (part.up != nullptr) up.emplace(*part.up, tiles, context, scratch.data() + scratch.size() / 2);
  const auto finish = up ? kernels.finish_glu[static_cast<int>(part.glu)] : kernels.finish;

  alignas(64) float gate_values[kMaxTileRows * kMaxGemmWidth];
  alignas(64) float up_values[kMaxTileRows * kMaxGemmWidth];
  FinishArgs result{};
  result.width = width;
  result.gate = gate_values;
  result.up = up_values;
  result.residual_stride = part.residual.stride;
  result.y_stride = part.y.stride;
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t feature = item * width;
    result.count = static_cast<int>(std::min<std::int64_t>(width, part.w->n - feature));
    result.bias = part.bias == nullptr ? nullptr : part.bias + feature;
    result.up_bias = part.up_bias == nullptr ? nullptr : part.up_bias + feature;
    gate.select(item * Weights::panels(kernels));
    if (up) up->select(item * Weights::panels(kernels));
    for (std::int64_t row = 0; row < rows; row += form.rows) {
      const std::int64_t index = row / form.rows;
      const ActivationTile tile = tiles.tile(index, rows, form);
      gate.multiply(tile, gate_values);
      if (up) up->multiply(tile, up_values);
      result.rows = tile.rows;
      result.residual = part.residual.data == nullptr ? nullptr : part.residual.row(row) + feature;
      result.y = part.y.row(row) + feature;
      finish(result);
    }
  }
}

}  // namespace

TileForm tile_form(const KernelTable& kernels, std::int64_t rows) {
  if (kernels.gemm_rows != 0 && rows > kernels.few_rows) return {kernels.gemm_rows, true};
  if (rows <= kernels.tile_rows) return {kernels.tile_rows, false};
  // Tiles of even size: one of a single row would cost almost as much as a full one.
  const std::int64_t tiles = (rows + kernels.tile_rows - 1) / kernels.tile_rows;
  return {static_cast<int>((rows + tiles - 1) / tiles), false};
}

std::int64_t TileSpace::tile_bytes(int tile_rows) const {
  if (block == 0) return align(k * tile_rows * 4);
  return align(k * tile_rows) + align(k / scale_every * tile_rows * 4) + align(k / 16 * tile_rows * 4) +
         2 * align(k / 32 * tile_rows * 4);
}

std::int64_t TileSpace::bytes(const KernelTable& kernels, std::int64_t rows) const {
  const auto in_form = [&](const TileForm& form, std::int64_t count) {
    return (count + form.rows - 1) / form.rows * tile_bytes(form.rows);
  };
  std::int64_t most = in_form(tile_form(kernels, rows), rows);
  for (std::int64_t few = 1; few <= std::min<std::int64_t>(rows, kernels.few_rows); ++few) {
    most = std::max(most, in_form(tile_form(kernels, few), few));
  }
  return most;
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
  tile.sums32 = tile.pairs32 = reinterpret_cast<std::int32_t*>(p);  // a form has one of them
  p += align(k / 32 * form.rows * 4);
  tile.scaled_sums = reinterpret_cast<float*>(p);
  return tile;
}

void prepare_row(const float* x, const TileSpace& tiles, const KernelTable& kernels, std::int64_t row,
                 std::int64_t rows, const Columns& columns) {
  const TileForm form = tile_form(kernels, rows);
  ActivationTile tile = tiles.tile(row / form.rows, rows, form);
  const int in_tile = static_cast<int>(row % form.rows);
  if (tiles.block == 0) {
    for (std::int64_t i = columns.begin; i < columns.end; ++i) tile.values[i * tile.rows + in_tile] = x[i];
    return;
  }
  const std::int64_t count = columns.end - columns.begin;
  const std::int64_t block = std::min(tiles.block, count);
  tile.codes += columns.begin * tile.rows;
  tile.scales += columns.begin / tiles.scale_every * tile.rows;
  tile.sums16 += columns.begin / (form.gemm ? 32 : 16) * tile.rows;
  tile.sums32 += columns.begin / 32 * tile.rows;
  tile.pairs32 += columns.begin / 64 * tile.rows;
  tile.scaled_sums += columns.begin / 32 * tile.rows;
  const auto quantize = form.gemm ? kernels.quantize_gemm : kernels.quantize;
  quantize(x + columns.begin, count, block, tiles.scale_every, tile, in_tile);
}

int panels_at_once(const KernelTable& kernels, std::int64_t rows) {
  return tile_form(kernels, rows).gemm ? ManyRows::panels(kernels) : FewRows::panels(kernels);
}

void multiply_items(const MatmulPart& part, const TileSpace& tiles, const StepContext& context, std::int64_t begin,
                    std::int64_t end, std::int64_t rows) {
  if (tile_form(*context.kernels, rows).gemm) {
    run_items<ManyRows>(part, tiles, context, begin, end, rows);
  } else {
    run_items<FewRows>(part, tiles, context, begin, end, rows);
  }
}

void warm_panel(const PackedMatrix& w, std::int64_t panel) {
  const std::uint8_t* bytes = w.panel(panel);
  const std::int64_t count = std::min<std::int64_t>(w.panel_bytes, kWarmBytes);
  for (std::int64_t i = 0; i < count; i += 64) __builtin_prefetch(bytes + i);
}

}  // namespace sterna::cpu
