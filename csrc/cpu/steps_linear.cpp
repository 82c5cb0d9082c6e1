/// Steps of linear and unembed: rows are prepared once (norm, quantisation, interleaving), then the panels of all parts
/// are shared out.
#include <algorithm>

#include "cpu/panel_matmul.h"
#include "cpu/steps.h"

namespace sterna::cpu {
namespace {

/// Items of all parts of a step, an item being `at_once` panels.
std::int64_t item_count(const MatmulStep& step, std::int64_t at_once) {
  std::int64_t total = 0;
  for (const MatmulPart& part : step.parts) total += (part.w->panels() + at_once - 1) / at_once;
  return total;
}

void multiply(const MatmulStep& step, const TileSpace& tiles, const StepContext& context) {
  const std::int64_t rows = context.rows(step.parts[0].y.outputs);
  const std::int64_t at_once = panels_at_once(*context.kernels, rows);
  const std::int64_t total = item_count(step, at_once);
  // Few rows stream through memory: bites long enough for that. With many rows an item is work enough.
  const std::int64_t bite = rows > kMaxFewRows ? 1 : total / (32 * context.num_workers) + 1;
  context.share(total, bite, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t first = 0;
    for (const MatmulPart& part : step.parts) {
      const std::int64_t last = first + (part.w->panels() + at_once - 1) / at_once;
      if (begin < last && end > first) {
        multiply_items(part, tiles, context, std::max(begin, first) - first, std::min(end, last) - first, rows);
      }
      first = last;
    }
  });
}

/// Row `row` of step.x, normed where asked for, into its tile.
void prepare(const PrepareStep& step, const TileSpace& tiles, const StepContext& context, std::int64_t row,
             std::int64_t rows) {
  const float* x = step.x.row(row);
  if (step.norm != nullptr) {
    float* normed = context.scratch->floats.as<float>();
    context.kernels->rms_norm(x, step.norm, normed, tiles.k, step.eps);
    x = normed;
  }
  prepare_row(x, tiles, *context.kernels, row, rows);
}

}  // namespace

void run_prepare(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const PrepareStep*>(arguments);
  const std::int64_t count = context.rows(step.x.outputs);
  // Whole tiles, so that two workers do not write to the same cache lines.
  const int tile_rows = tile_form(*context.kernels, count).rows;
  const std::int64_t piece = (context.row_piece(count) + tile_rows - 1) / tile_rows * tile_rows;
  context.share(count, piece, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) prepare(step, step.tiles, context, row, count);
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
  for (std::int64_t row = 0; row < rows; ++row) prepare(step.prepare, tiles, context, row, rows);
  multiply(step.matmul, tiles, context);
}

void warm_fused_matmul(const void* arguments, const StepContext& context) {
  const MatmulStep& step = static_cast<const FusedMatmulStep*>(arguments)->matmul;
  std::int64_t panel = stretch_begin(item_count(step, 1), context.worker, context.num_workers);
  for (const MatmulPart& part : step.parts) {
    if (panel < part.w->panels()) {
      warm_panel(*part.w, panel);
      return;
    }
    panel -= part.w->panels();
  }
}

}  // namespace sterna::cpu
