#include "cpu/lowering.h"

#include <algorithm>

#include "base/error.h"
#include "cpu/lower_ops.h"

namespace sterna::cpu {

void Lowering::lower(const Function& function) {
  set_outputs(function.outputs);
  for (const Node& node : function.nodes) {
    const LowerFunction lower_op = find_lowering(node.op);
    if (lower_op == nullptr) {
      throw UnsupportedModelError(node.op + " " + node.name + ": the CPU backend has no kernel for this op (" +
                                  node.source + ")");
    }
    lower_op(*this, node);
  }
  for (const ValueId output : function.outputs) touch(place_of(output));
}

const std::vector<float>* Lowering::optional_vector(const Node& node, std::string_view role) const {
  const ValueId id = node.input(role);
  return id == kNoValue ? nullptr : &weights_.vector(program().value(id).name);
}

void Lowering::add(StepFunction few, const void* few_arguments, StepFunction many, const void* many_arguments) {
  few_rows_.push_back({few, few_arguments});
  many_rows_.push_back({many, many_arguments});
  advance();
}

void Lowering::add_many(StepFunction run, const void* arguments) {
  many_rows_.push_back({run, arguments});
  advance();
}

void Lowering::need_tiles(const TileSpace& tiles) {
  tiles_bytes_ = std::max(tiles_bytes_, tiles.bytes(kernels(), kMaxFusedRows));
}

void Lowering::need_unpacked(const PackedMatrix& w) {
  const std::int64_t native =
      w.layout == LayoutId::kNative ? w.k / 256 * layout_spec(LayoutId::kUnpacked).block_bytes() : 0;
  const int width = kernels().gemm_panels * kPanelRows;
  const std::int64_t wide = wide_tile_bytes(gemm_kind(w.layout, false), w.k, width);
  // Two of them: gate and up.
  unpacked_bytes_ = std::max(unpacked_bytes_, 2 * ((wide + 63) / 64 * 64 + native));
}

std::int64_t Lowering::tile_space_bytes(const TileSpace& tiles, bool outputs) const {
  return tiles.bytes(kernels(), max_rows(outputs));
}

void Lowering::bind_rope(HeadTransform& transform, const Node& node, std::string_view prefix) {
  const auto [place, is_new] = rope_place(node, prefix);
  if (is_new) {
    auto& step = make<RopeTableStep>();
    const std::vector<float>* divisors = optional_vector(node, "factors");
    step.frequencies = inverse_frequencies(place.spec, divisors == nullptr ? std::span<const float>() : *divisors);
    if (place.long_factors != kNoValue) {
      step.long_frequencies = inverse_frequencies(place.spec, *optional_vector(node, "long_factors"));
    }
    step.factor = static_cast<float>(place.spec.attention_factor);
    bind(step.cosines, place.cosines);
    bind(step.sines, place.sines);
    add(run_rope_table, &step);
  }
  bind(transform.cosines, place.cosines);
  bind(transform.sines, place.sines);
  transform.rotary_dim = static_cast<int>(place.spec.rotary_dim);
  transform.interleaved = place.spec.style == RopeStyle::kInterleaved;
}

}  // namespace sterna::cpu
