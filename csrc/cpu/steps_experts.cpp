#include "cpu/steps_experts.h"

#include <cmath>

#include "cpu/panel_matmul.h"
#include "engine/softmax.h"

namespace sterna::cpu {
namespace {

/// e^x for x <= 0; a NaN stays one.
float power(float x) { return x == x ? exp_nonpositive(x) : x; }

/// NaNs are worse than anything.
bool is_better(float a, float b) { return a > b || (b != b && a == a); }

float sigmoid(float x) {
  const float small = power(x < 0.0f ? x : -x);
  return (x < 0.0f ? small : 1.0f) / (1.0f + small);
}

/// Ids of the `count` largest of `values`, the largest first.
void find_best(const float* values, std::int64_t size, std::int64_t count, float* ids) {
  for (std::int64_t rank = 0; rank < count; ++rank) {
    std::int64_t best = -1;
    for (std::int64_t i = 0; i < size; ++i) {
      if (best >= 0 && !is_better(values[i], values[best])) continue;
      const bool is_taken = std::find(ids, ids + rank, static_cast<float>(i)) != ids + rank;
      if (!is_taken) best = i;
    }
    ids[rank] = static_cast<float>(best);
  }
}

float largest_of(const float* values, std::int64_t size) {
  float largest = values[0];
  for (std::int64_t i = 1; i < size; ++i) largest = is_better(values[i], largest) ? values[i] : largest;
  return largest;
}

/// Scores of all experts, of which some become weights.
void score(const RouteStep& step, const float* logits, float* scores) {
  if (step.is_sigmoid) {
    for (std::int64_t i = 0; i < step.num_experts; ++i) scores[i] = sigmoid(logits[i]);
    return;
  }
  const float largest = largest_of(logits, step.num_experts);
  float sum = 0.0f;
  for (std::int64_t i = 0; i < step.num_experts; ++i) {
    scores[i] = power(logits[i] - largest);
    sum += scores[i];
  }
  for (std::int64_t i = 0; i < step.num_experts; ++i) scores[i] /= sum;
}

/// Ids of the groups that win by the values of their experts, behind a float for each group.
float* choose_groups(const RouteStep& step, const float* values, float* scratch) {
  const std::int64_t size = step.num_experts / step.groups;
  for (std::int64_t g = 0; g < step.groups; ++g) {
    float ids[2];
    const float* const group = values + g * size;
    find_best(group, size, step.two_best ? 2 : 1, ids);
    scratch[g] = group[static_cast<std::int64_t>(ids[0])];
    if (step.two_best) scratch[g] += group[static_cast<std::int64_t>(ids[1])];
  }
  float* const chosen = scratch + step.groups;
  find_best(scratch, step.groups, step.groups_used, chosen);
  return chosen;
}

/// Ids of the experts of one row. Without a bias these go by logits, which rounding does not make equal as it does
/// scores.
void choose(const RouteStep& step, const float* logits, float* experts, float* scratch) {
  if (step.bias != nullptr || (step.groups > 1 && step.two_best)) {
    score(step, logits, scratch);
  } else {
    std::copy_n(logits, step.num_experts, scratch);
  }
  for (std::int64_t i = 0; step.bias != nullptr && i < step.num_experts; ++i) scratch[i] += step.bias[i];
  if (step.groups > 1) {
    const float* const chosen = choose_groups(step, scratch, scratch + step.num_experts);
    const float* const last = chosen + step.groups_used;
    if (step.bias == nullptr) std::copy_n(logits, step.num_experts, scratch);
    for (std::int64_t i = 0; i < step.num_experts; ++i) {
      const auto group = static_cast<float>(i / (step.num_experts / step.groups));
      if (std::find(chosen, last, group) == last) scratch[i] = NAN;
    }
  }
  find_best(scratch, step.num_experts, step.used, experts);
}

void route_row(const RouteStep& step, const float* logits, float* experts, float* weights, float* scratch) {
  choose(step, logits, experts, scratch);
  for (std::int64_t rank = 0; rank < step.used; ++rank) {
    weights[rank] = logits[static_cast<std::int64_t>(experts[rank])];
  }
  float sum = 0.0f;
  if (step.is_sigmoid) {
    std::transform(weights, weights + step.used, weights, sigmoid);
  } else {
    const float largest = step.normalize ? largest_of(weights, step.used) : largest_of(logits, step.num_experts);
    for (std::int64_t rank = 0; rank < step.used; ++rank) weights[rank] = power(weights[rank] - largest);
    for (std::int64_t i = 0; !step.normalize && i < step.num_experts; ++i) sum += power(logits[i] - largest);
  }
  for (std::int64_t rank = 0; step.normalize && rank < step.used; ++rank) sum += weights[rank];
  for (std::int64_t rank = 0; rank < step.used; ++rank) {
    if (step.normalize || !step.is_sigmoid) weights[rank] /= sum;
    if (step.factor != 1.0f) weights[rank] *= step.factor;
  }
}

/// How the work of an ExpertMatmulStep is dealt out: runs of panels, as many in each group.
struct Pieces {
  std::int64_t panels;     // of a piece
  std::int64_t per_group;  // pieces
  std::int64_t total;

  Pieces(const ExpertMatmulStep& step, const KernelTable& kernels)
      : panels(panels_at_once(kernels, kernels.few_rows + 1)),
        per_group((step.w[0].panels() + panels - 1) / panels),
        total(per_group * step.pairs.count()) {}
};

/// Pieces begin .. end - 1 of one group.
void multiply_group(const ExpertMatmulStep& step, const StepContext& context, std::int64_t index, std::int64_t begin,
                    std::int64_t end, const Pieces& pieces) {
  const ExpertGroup& group = step.pairs.groups()[static_cast<std::size_t>(index)];
  const auto expert = static_cast<std::size_t>(group.expert);
  MatmulPart part{};
  part.w = &step.w[expert];
  part.up = step.up.empty() ? nullptr : &step.up[expert];
  part.glu = step.glu;
  if (step.bias != nullptr) part.bias = step.bias + group.expert * part.w->n;
  if (step.up_bias != nullptr) part.up_bias = step.up_bias + group.expert * part.w->n;
  part.y = step.y;
  part.y.data = step.y.row(group.first);
  const TileSpace tiles = step.tiles.of_group(step.pairs, index);
  const std::int64_t at_once = panels_at_once(*context.kernels, group.count);
  const std::int64_t items = pieces.panels / at_once;  // of a piece
  const std::int64_t last = std::min(end * items, (part.w->panels() + at_once - 1) / at_once);
  multiply_items(part, tiles, context, begin * items, last, group.count);
}

}  // namespace

ExpertTiles::ExpertTiles(const TileSpace& tiles, const KernelTable& kernels) : first(tiles) {
  for (std::int64_t rows = 1; rows <= kernels.few_rows + 1; ++rows) {
    const int tile_rows = tile_form(kernels, rows).rows;
    row_bytes = std::max(row_bytes, (tiles.tile_bytes(tile_rows) + tile_rows - 1) / tile_rows);
  }
  row_bytes = (row_bytes + 63) / 64 * 64;
}

std::int64_t ExpertTiles::bytes(const ExpertPairs& pairs) const {
  return (pairs.max_pairs + pairs.max_groups() * (kMaxTileRows - 1)) * row_bytes;
}

TileSpace ExpertTiles::of_group(const ExpertPairs& pairs, std::int64_t index) const {
  TileSpace own = first;
  // The last tile of each group before it may be short of rows.
  const std::int64_t rows = pairs.groups()[static_cast<std::size_t>(index)].first + index * (kMaxTileRows - 1);
  own.base += rows * row_bytes;
  return own;
}

void run_route(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const RouteStep*>(arguments);
  const std::int64_t count = context.rows(step.x.outputs);
  context.share(count, context.row_piece(count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      route_row(step, step.x.row(row), step.experts.row(row), step.weights.row(row),
                context.scratch->floats.as<float>());
    }
  });
}

void run_sort_pairs(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const SortPairsStep*>(arguments);
  context.share(1, 1, [&](std::int64_t, std::int64_t) {
    const ExpertPairs& pairs = step.pairs;
    const std::int64_t rows = context.rows(step.experts.outputs);
    // A counting sort; until a pair has its place, its expert stands there.
    std::int32_t* const places = pairs.places();
    std::int32_t* const counts = context.scratch->floats.as<std::int32_t>();
    std::fill_n(counts, pairs.num_experts, 0);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t rank = 0; rank < pairs.used; ++rank) {
        const auto expert = static_cast<std::int32_t>(step.experts.row(row)[rank]);
        places[row * pairs.used + rank] = expert;
        ++counts[expert];
      }
    }
    std::int32_t first = 0;
    pairs.count() = 0;
    for (std::int32_t expert = 0; expert < pairs.num_experts; ++expert) {
      if (counts[expert] == 0) continue;
      pairs.group_data()[pairs.count()++] = {expert, first, counts[expert]};
      first += counts[expert];
      counts[expert] = first - counts[expert];
    }
    for (std::int32_t pair = 0; pair < rows * pairs.used; ++pair) {
      const std::int32_t place = counts[places[pair]]++;
      places[pair] = place;
      pairs.pairs()[place] = pair;
    }
  });
}

void run_expert_prepare(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const ExpertPrepareStep*>(arguments);
  const std::span<const ExpertGroup> groups = step.pairs.groups();
  const std::int64_t count = context.rows(step.x.outputs) * step.pairs.used;
  // Runs of places, so long that most tiles have one writer.
  const std::int64_t piece = (context.row_piece(count) + kMaxTileRows - 1) / kMaxTileRows * kMaxTileRows;
  context.share(count, piece, [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const ExpertGroup& group = groups[g];
      const std::int64_t first = std::max<std::int64_t>(begin, group.first);
      const std::int64_t last = std::min<std::int64_t>(end, group.first + group.count);
      if (first >= last) continue;
      const TileSpace tiles = step.tiles.of_group(step.pairs, static_cast<std::int64_t>(g));
      for (std::int64_t place = first; place < last; ++place) {
        const std::int32_t pair = step.pairs.pairs()[place];
        const std::int64_t row = pair / step.pairs.used;
        const float* x = step.x.row(step.is_sorted ? place : row);
        if (step.weights.data != nullptr) {
          float* const weighed = context.scratch->floats.as<float>();
          context.kernels->scale(x, step.weights.row(row)[pair % step.pairs.used], weighed, tiles.k);
          x = weighed;
        }
        prepare_row(x, tiles, *context.kernels, place - group.first, group.count, {0, tiles.k});
      }
    }
  });
}

void run_expert_matmul(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const ExpertMatmulStep*>(arguments);
  const Pieces pieces(step, *context.kernels);
  const bool is_few = std::ranges::all_of(step.pairs.groups(),
                                          [&](const ExpertGroup& g) { return g.count <= context.kernels->few_rows; });
  const std::int64_t bite = is_few ? pieces.total / (32 * context.num_workers) + 1 : 1;
  context.share(pieces.total, bite, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t group = at / pieces.per_group;
      const std::int64_t first = group * pieces.per_group;
      const std::int64_t last = std::min(end, first + pieces.per_group);
      multiply_group(step, context, group, at - first, last - first, pieces);
      at = last;
    }
  });
}

void warm_expert_matmul(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const ExpertMatmulStep*>(arguments);
  const Pieces pieces(step, *context.kernels);
  const std::int64_t begin = stretch_begin(pieces.total, context.worker, context.num_workers);
  if (begin == pieces.total) return;
  const ExpertGroup& group = step.pairs.groups()[static_cast<std::size_t>(begin / pieces.per_group)];
  const std::int64_t panel = begin % pieces.per_group * pieces.panels;
  warm_panel(step.w[static_cast<std::size_t>(group.expert)], panel);
  if (!step.up.empty()) warm_panel(step.up[static_cast<std::size_t>(group.expert)], panel);
}

void run_combine(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const CombineStep*>(arguments);
  const KernelTable& kernels = *context.kernels;
  float* const product = context.scratch->floats.as<float>();
  const std::int64_t count = context.rows(step.y.outputs);
  context.share(count, context.row_piece(count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int32_t* places = step.pairs.places() + row * step.pairs.used;
      const auto weighed = [&](std::int64_t rank, float* to) -> const float* {
        const float* x = step.x.row(places[rank]);
        if (step.weights.data == nullptr) return x;
        kernels.scale(x, step.weights.row(row)[rank], to, step.n);
        return to;
      };
      float* y = step.y.row(row);
      if (const float* first = weighed(0, y); first != y) std::copy_n(first, step.n, y);
      for (std::int64_t rank = 1; rank < step.pairs.used; ++rank) {
        kernels.add(y, weighed(rank, product), y, step.n);
      }
      if (step.residual.data != nullptr) kernels.add(y, step.residual.row(row), y, step.n);
    }
  });
}

}  // namespace sterna::cpu
