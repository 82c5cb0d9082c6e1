#include "plan/buffer_plan.h"

#include <algorithm>

namespace sterna {

std::int64_t BufferPlan::row_size(ValueId value) const {
  std::int64_t size = 1;
  const Shape& shape = program_.value(value).shape;
  for (std::size_t i = 1; i < shape.size(); ++i) size *= shape[i].size;
  return size;
}

Place BufferPlan::define(ValueId value) {
  Place place = temporary_rows(row_size(value), program_.value(value).shape[0].size == Dim::kOutputs);
  if (std::find(outputs_.begin(), outputs_.end(), value) != outputs_.end()) place.stride = row_size(value);
  places_[value] = place;
  return place;
}

Place BufferPlan::temporary_rows(std::int64_t row_floats, bool outputs) {
  const std::int64_t stride = (row_floats + 15) / 16 * 16;
  return {temporary(max_rows(outputs) * stride * 4), 0, stride, outputs};
}

int BufferPlan::temporary(std::int64_t bytes) {
  const int now = position_;
  buffers_.push_back({bytes, now, now});
  return static_cast<int>(buffers_.size()) - 1;
}

std::pair<int, bool> BufferPlan::shared_buffer(const std::string& name, std::int64_t bytes) {
  if (const auto found = shared_buffers_.find(name); found != shared_buffers_.end()) return {found->second, false};
  return {shared_buffers_.emplace(name, temporary(bytes)).first->second, true};
}

std::pair<RopePlace, bool> BufferPlan::rope_place(const Node& node, std::string_view prefix) {
  const RopeSpec spec = rope_spec(node, prefix);
  const ValueId factors = node.input("factors");
  const ValueId long_factors = node.input("long_factors");
  const auto found = std::ranges::find_if(rope_places_, [&](const RopePlace& place) {
    return place.spec == spec && place.factors == factors && place.long_factors == long_factors;
  });
  if (found != rope_places_.end()) return {*found, false};
  const std::int64_t pairs = spec.rotary_dim / 2;
  rope_places_.push_back({spec, factors, long_factors, temporary_rows(pairs, false), temporary_rows(pairs, false)});
  return {rope_places_.back(), true};
}

std::int64_t BufferPlan::extend(int buffer, std::int64_t bytes) {
  return std::exchange(buffers_[static_cast<std::size_t>(buffer)].bytes, buffer_bytes(buffer) + bytes);
}

void BufferPlan::touch(int buffer) { buffers_[static_cast<std::size_t>(buffer)].last = position_; }

void BufferPlan::bind(Rows& rows, const Place& place) {
  touch(place.buffer);
  row_bindings_.emplace_back(&rows, place);
}

Placement BufferPlan::plan_memory() const {
  std::vector<Lifetime> lifetimes;
  const int last = position_;
  for (const BufferUse& use : buffers_) {
    const bool is_kept = limits_.keep_values || use.is_kept;
    lifetimes.push_back({use.bytes, is_kept ? 0 : use.first, is_kept ? last : use.last});
  }
  for (const std::string& name : limits_.kept) {
    const auto place = places_.find(program_.find(ValueKind::kNode, name));
    if (place != places_.end()) lifetimes[static_cast<std::size_t>(place->second.buffer)].last = last;
  }
  return place(lifetimes);
}

void BufferPlan::patch(const Placement& placement, std::uint8_t* arena) const {
  for (const auto& [rows, where] : row_bindings_) {
    rows->data =
        reinterpret_cast<float*>(arena + placement.offsets[static_cast<std::size_t>(where.buffer)]) + where.offset;
    rows->stride = where.stride;
    rows->outputs = where.outputs;
  }
  for (const PointerBinding& binding : pointer_bindings_) {
    const std::int64_t begin = placement.offsets[static_cast<std::size_t>(binding.buffer)] + binding.offset;
    binding.set(binding.pointer, arena + begin);
  }
}

Rows BufferPlan::rows_of(ValueId value, const Placement& placement, std::uint8_t* arena) const {
  const Place& place = places_.at(value);
  const std::int64_t begin = placement.offsets[static_cast<std::size_t>(place.buffer)];
  return {reinterpret_cast<float*>(arena + begin) + place.offset, place.stride, place.outputs};
}

}  // namespace sterna
