/// Steps of linear and unembed: rows are prepared once (norm, quantisation, interleaving), then the panels of all parts
/// are shared out.
#include <algorithm>

#include "cpu/panel_matmul.h"
#include "cpu/steps.h"

namespace sterna::cpu {
namespace {

/// Items of all parts of a step, an item being `at_once` panels.
std::int64_t item_count(const LinearStep& step, std::int64_t at_once) {
  std::int64_t total = 0;
  for (const MatmulPart& part : step.parts) total += (part.w->panels() + at_once - 1) / at_once;
  return total;
}

void multiply(const LinearStep& step, const TileSpace& tiles, const StepContext& context) {
  const std::int64_t rows = context.rows(step.parts[0].y.outputs);
  const std::int64_t at_once = panels_at_once(*context.kernels, rows);
  const std::int64_t total = item_count(step, at_once);
  // Few rows stream through memory: bites long enough for that. With many rows an item is work enough.
  const std::int64_t bite = rows > context.kernels->few_rows ? 1 : total / (32 * context.num_workers) + 1;
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

/// Columns of row `row` of step.x, normed where asked for, into its tile.
void prepare(const LinearStep& step, const TileSpace& tiles, const StepContext& context, std::int64_t row,
             std::int64_t rows, const Columns& columns) {
  const float* x = step.x.row(row);
  if (step.norm != nullptr) {
    float* normed = context.scratch->floats.as<float>();
    context.kernels->rms_norm(x, step.norm, normed, tiles.k, step.eps);
    x = normed;
  }
  prepare_row(x, tiles, *context.kernels, row, rows, columns);
}

}  // namespace

void run_prepare(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const LinearStep*>(arguments);
  const TileSpace& tiles = step.tiles;
  const std::int64_t rows = context.rows(step.x.outputs);
  // Rows of a tile share cache lines, so that a tile belongs to one worker; where there are fewer tiles than workers,
  // its columns to several, who then repeat the norm.
  const int tile_rows = tile_form(*context.kernels, rows).rows;
  const std::int64_t tile_count = (rows + tile_rows - 1) / tile_rows;
  std::int64_t parts = 1;
  if (tile_count != 0 && tile_count < context.num_workers && tiles.block <= 256) {
    parts = std::clamp<std::int64_t>(context.num_workers / tile_count, 1, std::max<std::int64_t>(1, tiles.k / 256));
  }
  const auto limit = [&](std::int64_t part) { return part == parts ? tiles.k : tiles.k / 256 * part / parts * 256; };
  context.share(tile_count * parts, context.row_piece(tile_count * parts), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const Columns columns{limit(item % parts), limit(item % parts + 1)};
      const std::int64_t first = item / parts * tile_rows;
      for (std::int64_t row = first; row < std::min(first + tile_rows, rows); ++row) {
        prepare(step, tiles, context, row, rows, columns);
      }
    }
  });
}

void run_matmul(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const LinearStep*>(arguments);
  multiply(step, step.tiles, context);
}

void run_linear(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const LinearStep*>(arguments);
  TileSpace tiles = step.tiles;
  tiles.base = context.scratch->tiles.data();
  const std::int64_t rows = context.rows(step.x.outputs);
  for (std::int64_t row = 0; row < rows; ++row) prepare(step, tiles, context, row, rows, {0, tiles.k});
  multiply(step, tiles, context);
}

void warm_linear(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const LinearStep*>(arguments);
  std::int64_t panel = stretch_begin(item_count(step, 1), context.worker, context.num_workers);
  for (const MatmulPart& part : step.parts) {
    if (panel < part.w->panels()) {
      warm_panel(*part.w, panel);
      return;
    }
    panel -= part.w->panels();
  }
}

void run_head_prepare(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const HeadLinearStep*>(arguments);
  const std::int64_t rows = context.rows(step.x.outputs);
  const int tile_rows = tile_form(*context.kernels, rows).rows;
  const std::int64_t per_head = (rows + tile_rows - 1) / tile_rows;
  const std::int64_t count = per_head * static_cast<std::int64_t>(step.w.size());
  context.share(count, context.row_piece(count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t head = item / per_head;
      TileSpace tiles = step.tiles;
      tiles.base += head * step.head_bytes;
      const std::int64_t first = item % per_head * tile_rows;
      for (std::int64_t row = first; row < std::min(first + tile_rows, rows); ++row) {
        prepare_row(step.x.row(row) + head * tiles.k, tiles, *context.kernels, row, rows, {0, tiles.k});
      }
    }
  });
}

void run_head_linear(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const HeadLinearStep*>(arguments);
  const std::int64_t rows = context.rows(step.y.outputs);
  const std::int64_t at_once = panels_at_once(*context.kernels, rows);
  const std::int64_t per_head = (step.w[0].panels() + at_once - 1) / at_once;
  const std::int64_t total = per_head * static_cast<std::int64_t>(step.w.size());
  const std::int64_t bite = rows > context.kernels->few_rows ? 1 : total / (32 * context.num_workers) + 1;
  context.share(total, bite, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t head = at / per_head;
      const std::int64_t first = head * per_head;
      const std::int64_t last = std::min(end, first + per_head);
      MatmulPart part{};
      part.w = &step.w[static_cast<std::size_t>(head)];
      part.y = step.y;
      part.y.data += head * part.w->n;
      TileSpace tiles = step.tiles;
      tiles.base += head * step.head_bytes;
      multiply_items(part, tiles, context, at - first, last - first, rows);
      at = last;
    }
  });
}

}  // namespace sterna::cpu
