/// Matmuls: rows are prepared once (norm, quantisation, interleaving), then weight panels meet tiles of rows.
#include <algorithm>
#include <optional>

#include "cpu/steps.h"

namespace sterna::cpu {
namespace {

std::int64_t align(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// Results of `panels` panels for the rows of one tile, [row][16 * panels].
struct Results {
  float* values;
  int width;
};

bool is_sum(const PackedMatrix& w, const TileSpace& tiles) { return w.uniform_scale && tiles.block == tiles.k; }

/// Integer sums become results where one scale holds for all of a row.
void scale_sums(const PackedMatrix& w, const ActivationTile& tile, const Results& out) {
  for (int row = 0; row < tile.rows; ++row) {
    const float scale = w.scale * tile.scales[row];
    for (int r = 0; r < out.width; ++r) out.values[row * out.width + r] *= scale;
  }
}

void add_bias(const Results& out, const float* bias, int rows, int count) {
  for (int row = 0; row < rows; ++row) {
    for (int r = 0; r < count; ++r) out.values[row * out.width + r] += bias[r];
  }
}

/// One panel for few rows: the kernels decode it on the way.
class FewRows {
 public:
  FewRows(const PackedMatrix& w, const TileSpace& tiles, const StepContext& context, std::int64_t first_panel,
          std::uint8_t* scratch)
      : w_(w), tiles_(tiles), kernels_(*context.kernels), panel_(w.panel(first_panel)) {
    if (w.layout != LayoutId::kNative) return;
    unpack_native_panel(w, first_panel, scratch);
    panel_ = scratch;
  }

  static int panels(const KernelTable&) { return 1; }

  void multiply(const ActivationTile& tile, const Results& out) const {
    const int n = tile.rows - 1;
    if (is_sum(w_, tiles_)) {
      kernels_.panel_sum[w_.layout == LayoutId::kTernary1_6 ? 1 : 0][n](panel_, w_.k, tile, out.values);
      scale_sums(w_, tile, out);
      return;
    }
    const LayoutId layout = w_.layout == LayoutId::kNative ? LayoutId::kUnpacked : w_.layout;
    kernels_.panel[static_cast<int>(layout)][n](panel_, w_.k, tile, out.values);
  }

 private:
  const PackedMatrix& w_;
  const TileSpace& tiles_;
  const KernelTable& kernels_;
  const std::uint8_t* panel_;
};

/// Panels side by side for many rows: unpacked once.
class ManyRows {
 public:
  ManyRows(const PackedMatrix& w, const TileSpace& tiles, const StepContext& context, std::int64_t first_panel,
           std::uint8_t* scratch)
      : w_(w), tiles_(tiles), kernels_(*context.kernels), kind_(gemm_kind(w.layout, is_sum(w, tiles))) {
    const int width = kernels_.gemm_panels * kPanelRows;
    tile_ = WideTile::at(scratch, kind_, w.k, width);
    std::uint8_t* native = scratch + align(wide_tile_bytes(kind_, w.k, width));
    const LayoutId layout = w.layout == LayoutId::kNative ? LayoutId::kUnpacked : w.layout;
    for (int p = 0; p < kernels_.gemm_panels; ++p) {
      // A last panel without a neighbour stands in for it; its results are not used.
      const std::int64_t index = std::min(first_panel + p, w.panels() - 1);
      const std::uint8_t* panel = w.panel(index);
      if (w.layout == LayoutId::kNative) {
        unpack_native_panel(w, index, native);
        panel = native;
      }
      kernels_.unpack[static_cast<int>(layout)](panel, w.k, tile_, p * kPanelRows);
    }
  }

  static int panels(const KernelTable& kernels) { return kernels.gemm_panels; }

  void multiply(const ActivationTile& tile, const Results& out) const {
    kernels_.gemm[static_cast<int>(kind_)][tile.rows - 1](tile_, w_.k, tile, out.values);
    if (kind_ == GemmKind::kSum) scale_sums(w_, tile, out);
  }

 private:
  const PackedMatrix& w_;
  const TileSpace& tiles_;
  const KernelTable& kernels_;
  const GemmKind kind_;
  WideTile tile_;
};

/// Panels first_panel .. first_panel + Weights::panels() - 1 of one part against all tiles.
template <class Weights>
void run_panels(const MatmulStep& step, const TileSpace& tiles, const StepContext& context, const MatmulPart& part,
                std::int64_t first_panel, std::int64_t rows) {
  const TileForm form = tile_form(*context.kernels, rows);
  const std::int64_t first_feature = first_panel * kPanelRows;
  const int width = Weights::panels(*context.kernels) * kPanelRows;
  const int count = static_cast<int>(std::min<std::int64_t>(width, part.w->n - first_feature));
  Buffer& scratch = context.scratch->unpacked;
  const Weights w(*part.w, tiles, context, first_panel, scratch.data());
  std::optional<Weights> up;
  if (part.up != nullptr) {
    up.emplace(*part.up, tiles, context, first_panel, scratch.data() + scratch.size() / 2);
  }

  alignas(64) float values[kMaxTileRows * kMaxGemmWidth];
  alignas(64) float up_values[kMaxTileRows * kMaxGemmWidth];
  const Results out{values, width};
  const Results up_out{up_values, width};
  for (std::int64_t t = 0; t * form.rows < rows; ++t) {
    const ActivationTile tile = tiles.tile(t, rows, form);
    w.multiply(tile, out);
    if (part.bias != nullptr) add_bias(out, part.bias + first_feature, tile.rows, count);
    if (up) {
      up->multiply(tile, up_out);
      if (part.up_bias != nullptr) add_bias(up_out, part.up_bias + first_feature, tile.rows, count);
      context.kernels->glu[static_cast<int>(step.glu)](values, up_values, values, tile.rows * width);
    }
    for (int i = 0; i < tile.rows; ++i) {
      const std::int64_t row = t * form.rows + i;
      const float* from = values + i * width;
      float* to = part.y.row(row) + first_feature;
      if (step.residual.data != nullptr) {
        const float* residual = step.residual.row(row) + first_feature;
        for (int r = 0; r < count; ++r) to[r] = from[r] + residual[r];
      } else {
        std::copy(from, from + count, to);
      }
    }
  }
}

template <class Weights>
void share_panels(const MatmulStep& step, const TileSpace& tiles, const StepContext& context, std::int64_t rows) {
  const std::int64_t at_once = Weights::panels(*context.kernels);
  const auto items = [&](const MatmulPart& part) { return (part.w->panels() + at_once - 1) / at_once; };
  std::int64_t total = 0;
  for (const MatmulPart& part : step.parts) total += items(part);
  // With few rows a piece is a stretch of memory long enough to stream; with many an item is work enough.
  const std::int64_t piece = rows > kMaxFewRows ? 1 : total / (8 * context.num_workers) + 1;
  context.share(total, piece, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t first = 0;
    for (const MatmulPart& part : step.parts) {
      const std::int64_t last = first + items(part);
      for (std::int64_t i = std::max(begin, first); i < std::min(end, last); ++i)
        run_panels<Weights>(step, tiles, context, part, (i - first) * at_once, rows);
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

}  // namespace sterna::cpu
