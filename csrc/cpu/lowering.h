/// From a Program's nodes to the steps of a CPU plan. One function per op, in one table; an op without an entry fails
/// at load.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpu/steps.h"
#include "cpu/weights.h"
#include "plan/buffer_plan.h"
#include "program/program.h"

namespace sterna::cpu {

/// Collects steps, the buffers that they use, and what a worker needs.
class Lowering : public BufferPlan {
 public:
  Lowering(const Program& program, const Weights& weights, const KernelTable& kernels, const Limits& limits)
      : BufferPlan(program, limits), weights_(weights), kernels_(kernels) {}

  /// Lowers the function's nodes. Throws UnsupportedModelError naming op, node and source line.
  void lower(const Function& function);

  const std::vector<Step>& few_rows() const { return few_rows_; }
  const std::vector<Step>& many_rows() const { return many_rows_; }
  /// Keeps the steps' arguments alive; the plan takes them over.
  std::deque<std::shared_ptr<void>> take_arguments() { return std::move(arguments_); }
  /// What one worker needs.
  std::int64_t scratch_floats() const { return scratch_floats_; }
  std::int64_t unpacked_bytes() const { return unpacked_bytes_; }
  std::int64_t tiles_bytes() const { return tiles_bytes_; }

  // What the per-op functions use.
  const Weights& weights() const { return weights_; }
  const std::vector<float>* optional_vector(const Node& node, std::string_view role) const;
  const PackedMatrix& matrix(ValueId weight) const { return weights_.matrix(program().value(weight).name); }
  std::span<const PackedMatrix> experts(ValueId weight) const { return weights_.experts(program().value(weight).name); }
  const KernelTable& kernels() const { return kernels_; }

  /// Arguments of a step to be added; addresses stay fixed.
  template <class T>
  T& make() {
    auto argument = std::make_shared<T>();
    T& reference = *argument;
    arguments_.push_back(std::move(argument));
    return reference;
  }
  void add(StepFunction run, const void* arguments) { add(run, arguments, run, arguments); }
  void add(StepFunction few, const void* few_arguments, StepFunction many, const void* many_arguments);
  /// What the last step of the few rows does beforehand.
  void warm(StepFunction warm) { few_rows_.back().warm = warm; }
  /// A step that lists for few rows do without.
  void add_many(StepFunction run, const void* arguments);

  /// Bytes of prepared rows, for as many rows as a run can have.
  std::int64_t tile_space_bytes(const TileSpace& tiles, bool outputs) const;
  void need_scratch(std::int64_t floats) { scratch_floats_ = std::max(scratch_floats_, floats); }
  void need_tiles(const TileSpace& tiles);
  void need_unpacked(const PackedMatrix& w);

  /// Cosines and sines for a rope, computed once per run for all nodes that share them.
  void bind_rope(HeadTransform& transform, const Node& node, std::string_view prefix);

 private:
  const Weights& weights_;
  const KernelTable& kernels_;
  std::vector<Step> few_rows_, many_rows_;
  std::deque<std::shared_ptr<void>> arguments_;
  std::int64_t scratch_floats_ = 16;
  std::int64_t unpacked_bytes_ = 0;
  std::int64_t tiles_bytes_ = 0;
};

}  // namespace sterna::cpu
