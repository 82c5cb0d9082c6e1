/// Matmuls: rows are prepared once (norm, quantisation, interleaving), then weight panels meet tiles of rows.
#include <algorithm>

#include "cpu/steps.h"

namespace sterna::cpu {
namespace {

std::int64_t align(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// One panel of a matrix with one tile of rows: out[row][16].
void multiply(const StepContext& context, const PackedMatrix& w, const std::uint8_t* panel, const TileSpace& tiles,
              const ActivationTile& tile, float* out) {
  const int n = tile.rows - 1;
  if (w.uniform_scale && tiles.block == tiles.k) {
    const bool packed_1_6 = w.layout == LayoutId::kTernary1_6;
    context.kernels->panel_sum[packed_1_6 ? 1 : 0][n](panel, w.k, tile, out);
    for (int row = 0; row < tile.rows; ++row) {
      const float scale = w.scale * tile.scales[row];
      for (int r = 0; r < kPanelRows; ++r) out[row * kPanelRows + r] *= scale;
    }
    return;
  }
  const LayoutId layout = w.layout == LayoutId::kNative ? LayoutId::kUnpacked : w.layout;
  context.kernels->panel[static_cast<int>(layout)][n](panel, w.k, tile, out);
}

/// The panel as the kernels read it.
const std::uint8_t* panel_of(const PackedMatrix& w, std::int64_t panel, std::uint8_t* unpacked) {
  if (w.layout != LayoutId::kNative) return w.panel(panel);
  unpack_native_panel(w, panel, unpacked);
  return unpacked;
}

void add_bias(float* out, const float* bias, int rows, int count) {
  for (int row = 0; row < rows; ++row) {
    for (int r = 0; r < count; ++r) out[row * kPanelRows + r] += bias[r];
  }
}

/// One panel of one part against all tiles.
void run_panel(const MatmulStep& step, const StepContext& context, const MatmulPart& part, std::int64_t panel,
               std::int64_t rows) {
  const int tile_rows = context.kernels->tile_rows;
  const std::int64_t first_feature = panel * kPanelRows;
  const int count = static_cast<int>(std::min<std::int64_t>(kPanelRows, part.w->n - first_feature));
  std::uint8_t* scratch = context.scratch->unpacked.data();
  const std::uint8_t* w = panel_of(*part.w, panel, scratch);
  const std::uint8_t* up = nullptr;
  if (part.up != nullptr) up = panel_of(*part.up, panel, scratch + context.scratch->unpacked.size() / 2);

  alignas(64) float out[kMaxTileRows * kPanelRows];
  alignas(64) float up_out[kMaxTileRows * kPanelRows];
  for (std::int64_t t = 0; t * tile_rows < rows; ++t) {
    const ActivationTile tile = step.tiles.tile(t, rows, tile_rows);
    multiply(context, *part.w, w, step.tiles, tile, out);
    if (part.bias != nullptr) add_bias(out, part.bias + first_feature, tile.rows, count);
    if (part.up != nullptr) {
      multiply(context, *part.up, up, step.tiles, tile, up_out);
      if (part.up_bias != nullptr) add_bias(up_out, part.up_bias + first_feature, tile.rows, count);
      context.kernels->glu[static_cast<int>(step.glu)](out, up_out, out, tile.rows * kPanelRows);
    }
    for (int i = 0; i < tile.rows; ++i) {
      const std::int64_t row = t * tile_rows + i;
      const float* from = out + i * kPanelRows;
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

void share_panels(const MatmulStep& step, const StepContext& context, std::int64_t piece, std::int64_t rows) {
  std::int64_t total = 0;
  for (const MatmulPart& part : step.parts) total += part.w->panels();
  context.share(total, piece, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t first = 0;
    for (const MatmulPart& part : step.parts) {
      const std::int64_t last = first + part.w->panels();
      for (std::int64_t p = std::max(begin, first); p < std::min(end, last); ++p)
        run_panel(step, context, part, p - first, rows);
      first = last;
    }
  });
}

}  // namespace

std::int64_t TileSpace::tile_bytes(int tile_rows) const {
  if (block == 0) return align(k * tile_rows * 4);
  return align(k * tile_rows) + align(k / scale_every * tile_rows * 4) + align(k / 16 * tile_rows * 4) +
         align(k / 32 * tile_rows * 4);
}

ActivationTile TileSpace::tile(std::int64_t index, std::int64_t rows, int tile_rows) const {
  ActivationTile tile;
  tile.rows = static_cast<int>(std::min<std::int64_t>(tile_rows, rows - index * tile_rows));
  std::uint8_t* p = base + index * tile_bytes(tile_rows);
  if (block == 0) {
    tile.values = reinterpret_cast<float*>(p);
    return tile;
  }
  tile.codes = reinterpret_cast<std::int8_t*>(p);
  p += align(k * tile_rows);
  tile.scales = reinterpret_cast<float*>(p);
  p += align(k / scale_every * tile_rows * 4);
  tile.sums16 = reinterpret_cast<std::int32_t*>(p);
  p += align(k / 16 * tile_rows * 4);
  tile.sums32 = reinterpret_cast<std::int32_t*>(p);
  return tile;
}

void run_prepare(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const PrepareStep*>(arguments);
  const KernelTable& kernels = *context.kernels;
  const std::int64_t count = context.rows(step.x.outputs);
  const std::int64_t k = step.tiles.k;
  float* normed = context.scratch->floats.as<float>();
  // Whole tiles, so that two workers do not write to the same cache lines.
  const std::int64_t piece = (context.row_piece(count) + kernels.tile_rows - 1) / kernels.tile_rows * kernels.tile_rows;
  context.share(count, piece, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* x = step.x.row(row);
      if (step.norm != nullptr) {
        kernels.rms_norm(x, step.norm, normed, k, step.eps);
        x = normed;
      }
      const ActivationTile tile = step.tiles.tile(row / kernels.tile_rows, count, kernels.tile_rows);
      const int in_tile = static_cast<int>(row % kernels.tile_rows);
      if (step.tiles.block != 0) {
        kernels.quantize(x, k, step.tiles.block, step.tiles.scale_every, tile, in_tile);
      } else {
        for (std::int64_t i = 0; i < k; ++i) tile.values[i * tile.rows + in_tile] = x[i];
      }
    }
  });
}

void run_matmul_few(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const MatmulStep*>(arguments);
  std::int64_t panels = 0;
  for (const MatmulPart& part : step.parts) panels += part.w->panels();
  share_panels(step, context, panels / (8 * context.num_workers) + 1, context.rows(step.parts[0].y.outputs));
}

void run_matmul_many(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const MatmulStep*>(arguments);
  share_panels(step, context, 1, context.rows(step.parts[0].y.outputs));
}

}  // namespace sterna::cpu
