#include "cpu/lowering.h"

#include <algorithm>

#include "base/error.h"
#include "cpu/lower_ops.h"

namespace sterna::cpu {

void Lowering::lower(const Function& function) {
  outputs_ = function.outputs;
  for (const Node& node : function.nodes) {
    const LowerFunction lower_op = find_lowering(node.op);
    if (lower_op == nullptr) {
      throw UnsupportedModelError(node.op + " " + node.name + ": the CPU backend has no kernel for this op (" +
                                  node.source + ")");
    }
    lower_op(*this, node);
  }
  for (const ValueId output : function.outputs) touch(places_.at(output).buffer);
}

std::int64_t Lowering::row_size(ValueId value) const {
  std::int64_t size = 1;
  const Shape& shape = program_.value(value).shape;
  for (std::size_t i = 1; i < shape.size(); ++i) size *= shape[i].size;
  return size;
}

const std::vector<float>* Lowering::optional_vector(const Node& node, std::string_view role) const {
  const ValueId id = node.input(role);
  return id == kNoValue ? nullptr : &weights_.vector(program_.value(id).name);
}

void Lowering::add(StepFunction few, const void* few_arguments, StepFunction many, const void* many_arguments) {
  few_rows_.push_back({few, few_arguments});
  many_rows_.push_back({many, many_arguments});
  ++position_;
}

void Lowering::add_many(StepFunction run, const void* arguments) {
  many_rows_.push_back({run, arguments});
  ++position_;
}

void Lowering::need_tiles(const TileSpace& tiles) {
  tiles_bytes_ = std::max(tiles_bytes_, tiles.bytes(*limits_.kernels, kMaxFusedRows));
}

void Lowering::need_unpacked(const PackedMatrix& w) {
  const std::int64_t native =
      w.layout == LayoutId::kNative ? w.k / 256 * layout_spec(LayoutId::kUnpacked).block_bytes() : 0;
  const int width = limits_.kernels->gemm_panels * kPanelRows;
  const std::int64_t wide = wide_tile_bytes(gemm_kind(w.layout, false), w.k, width);
  // Two of them: gate and up.
  unpacked_bytes_ = std::max(unpacked_bytes_, 2 * ((wide + 63) / 64 * 64 + native));
}

Place Lowering::define(ValueId value) {
  Place place = temporary_rows(row_size(value), program_.value(value).shape[0].size == Dim::kOutputs);
  if (std::find(outputs_.begin(), outputs_.end(), value) != outputs_.end()) place.stride = row_size(value);
  places_[value] = place;
  return place;
}

Place Lowering::temporary_rows(std::int64_t row_floats, bool outputs) {
  const std::int64_t stride = (row_floats + 15) / 16 * 16;
  return {temporary(max_rows(outputs) * stride * 4), 0, stride, outputs};
}

int Lowering::temporary(std::int64_t bytes) {
  const int now = position_;
  buffers_.push_back({bytes, now, now});
  return static_cast<int>(buffers_.size()) - 1;
}

std::pair<int, bool> Lowering::shared_buffer(const std::string& name, std::int64_t bytes) {
  if (const auto found = shared_buffers_.find(name); found != shared_buffers_.end()) return {found->second, false};
  return {shared_buffers_.emplace(name, temporary(bytes)).first->second, true};
}

std::int64_t Lowering::tile_space_bytes(const TileSpace& tiles, bool outputs) const {
  return tiles.bytes(*limits_.kernels, max_rows(outputs));
}

void Lowering::touch(int buffer) { buffers_[static_cast<std::size_t>(buffer)].last = position_; }

void Lowering::bind(Rows& rows, const Place& place) {
  touch(place.buffer);
  row_bindings_.emplace_back(&rows, place);
}

void Lowering::bind(std::uint8_t*& pointer, int buffer) {
  touch(buffer);
  pointer_bindings_.emplace_back(&pointer, buffer);
}

void Lowering::bind_rope(HeadTransform& transform, const Node& node, std::string_view prefix) {
  const RopeSpec spec = rope_spec(node, prefix);
  const ValueId factors = node.input("factors");
  const ValueId long_factors = node.input("long_factors");
  auto table = std::find_if(rope_tables_.begin(), rope_tables_.end(), [&](const RopeTable& t) {
    return t.spec == spec && t.factors == factors && t.long_factors == long_factors;
  });
  if (table == rope_tables_.end()) {
    const std::int64_t pairs = spec.rotary_dim / 2;
    table = rope_tables_.insert(
        rope_tables_.end(), {spec, factors, long_factors, temporary_rows(pairs, false), temporary_rows(pairs, false)});
    auto& step = make<RopeTableStep>();
    const std::vector<float>* divisors = optional_vector(node, "factors");
    step.frequencies = inverse_frequencies(spec, divisors == nullptr ? std::span<const float>() : *divisors);
    if (long_factors != kNoValue) {
      step.long_frequencies = inverse_frequencies(spec, *optional_vector(node, "long_factors"));
    }
    step.factor = static_cast<float>(spec.attention_factor);
    bind(step.cosines, table->cosines);
    bind(step.sines, table->sines);
    add(run_rope_table, &step);
  }
  bind(transform.cosines, table->cosines);
  bind(transform.sines, table->sines);
  transform.rotary_dim = static_cast<int>(spec.rotary_dim);
  transform.interleaved = spec.style == RopeStyle::kInterleaved;
}

Placement Lowering::plan_memory() const {
  std::vector<Lifetime> lifetimes;
  const int last = position_;
  for (const BufferUse& use : buffers_) {
    lifetimes.push_back({use.bytes, limits_.keep_values ? 0 : use.first, limits_.keep_values ? last : use.last});
  }
  for (const std::string& name : limits_.kept) {
    const auto place = places_.find(program_.find(ValueKind::kNode, name));
    if (place != places_.end()) lifetimes[static_cast<std::size_t>(place->second.buffer)].last = last;
  }
  return place(lifetimes);
}

void Lowering::patch(const Placement& placement, std::uint8_t* arena) const {
  for (const auto& [rows, where] : row_bindings_) {
    rows->data =
        reinterpret_cast<float*>(arena + placement.offsets[static_cast<std::size_t>(where.buffer)]) + where.offset;
    rows->stride = where.stride;
    rows->outputs = where.outputs;
  }
  for (const auto& [pointer, buffer] : pointer_bindings_) {
    *pointer = arena + placement.offsets[static_cast<std::size_t>(buffer)];
  }
}

}  // namespace sterna::cpu
