#include "cuda/lowering.h"

#include <algorithm>

#include "base/error.h"

namespace sterna::cuda {

const std::uint8_t* Constants::add(const void* data, std::uint64_t bytes) {
  if (device_ == nullptr) return nullptr;
  const std::string key(static_cast<const char*>(data), bytes);
  const auto [found, is_new] = tables_.try_emplace(key);
  if (is_new) {
    found->second = DeviceMemory(device_, bytes);
    device_->copy(found->second.data(), found->first.data(), bytes);
  }
  return found->second.data();
}

void Lowering::lower(const Function& function) {
  set_outputs(function.outputs);
  function_ = &function;
  for (const Node& node : function.nodes) {
    const LowerFunction lower_op = find_lowering(node.op);
    if (lower_op == nullptr) unsupported(node, "the CUDA backend has no kernel for this op");
    lower_op(*this, node);
  }
  for (const ValueId output : function.outputs) touch(place_of(output));
}

const float* Lowering::vector(const Node& node, std::string_view role) const {
  const ValueId id = node.input(role);
  return id == kNoValue ? nullptr : vector(id);
}

KvLayer Lowering::kv_layer(std::int64_t layer) const {
  return kv_ == nullptr ? describe_layer(layout_, layer) : kv_->device_layer(layer);
}

void Lowering::add(const Step& step) {
  steps_.push_back(step);
  advance();
}

std::int64_t Lowering::zeroed_offset(const std::string& name, std::int64_t bytes) {
  if (zeroed_ < 0) {
    zeroed_ = temporary(0);
    keep(zeroed_);
  }
  const auto [found, is_new] = zeroed_offsets_.try_emplace(name);
  if (is_new) found->second = extend(zeroed_, (bytes + 63) / 64 * 64);
  return found->second;
}

void Lowering::leave_maxima(ValueId value, RowMaxima& maxima) {
  constexpr std::int64_t kPlannedBytes = 227 << 10;  // of a block of the device that memory is planned for without one
  const bool is_wanted = std::ranges::any_of(
      function_->nodes, [&](const Node& node) { return can_prepare(*this, node) && node.input("x") == value; });
  const Device* const device = constants_.device();
  const std::int32_t rows = most_rows_to_prepare(
      row_size(value), device == nullptr ? kPlannedBytes : static_cast<std::int64_t>(device->info().block_bytes));
  if (!is_wanted || rows == 0) return;
  maxima_[value] = rows;
  bind_maxima(value, maxima);
}

std::int32_t Lowering::rows_with_maxima(ValueId value) const {
  const auto found = maxima_.find(value);
  return found == maxima_.end() ? 0 : found->second;
}

void Lowering::bind_maxima(ValueId value, RowMaxima& maxima) {
  maxima.most_rows = maxima_.at(value);
  bind_zeroed(maxima.data, "maxima of " + program().value(value).name, std::int64_t{maxima.most_rows} * 4);
}

void Lowering::bind_rope(HeadTransform& transform, const Node& node, std::string_view prefix) {
  const auto [place, is_new] = rope_place(node, prefix);
  if (is_new) {
    auto& step = make<RopeTableArguments>();
    const auto divisors = [&](ValueId id) {
      return id == kNoValue ? std::span<const float>() : std::span<const float>(host_vector(id));
    };
    step.frequencies = constants_.add(inverse_frequencies(place.spec, divisors(place.factors)));
    if (place.long_factors != kNoValue) {
      step.long_frequencies = constants_.add(inverse_frequencies(place.spec, divisors(place.long_factors)));
    }
    step.pairs = static_cast<std::int32_t>(place.spec.rotary_dim / 2);
    step.factor = static_cast<float>(place.spec.attention_factor);
    bind(step.cosines, place.cosines);
    bind(step.sines, place.sines);
    add(Kernel::kRopeTable, &step);
  }
  bind(transform.cosines, place.cosines);
  bind(transform.sines, place.sines);
  transform.rotary_dim = static_cast<std::int32_t>(place.spec.rotary_dim);
  transform.interleaved = place.spec.style == RopeStyle::kInterleaved;
}

}  // namespace sterna::cuda
