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
#include "plan/memory_planner.h"
#include "program/program.h"
#include "program/rope.h"

namespace sterna::cpu {

/// Where a value lives: a buffer of the arena, and where in its rows.
struct Place {
  int buffer = -1;
  std::int64_t offset = 0;  // floats into a row
  std::int64_t stride = 0;
  bool outputs = false;
};

/// Collects steps and the buffers that they use, then places the buffers and patches the addresses into the steps.
class Lowering {
 public:
  struct Limits {
    std::int64_t max_tokens;
    std::int64_t max_outputs;
    const KernelTable* kernels;
    bool keep_values;  // no buffer is used twice, so that every value can be looked at after a run
    std::span<const std::string> kept = {};  // the same for values of these names
  };

  Lowering(const Program& program, const Weights& weights, const Limits& limits)
      : program_(program), weights_(weights), limits_(limits) {}

  /// Lowers the function's nodes. Throws UnsupportedModelError naming op, node and source line.
  void lower(const Function& function);
  /// Places all buffers; afterwards the steps point into `arena`.
  Placement plan_memory() const;
  void patch(const Placement& placement, std::uint8_t* arena) const;

  const std::vector<Step>& few_rows() const { return few_rows_; }
  const std::vector<Step>& many_rows() const { return many_rows_; }
  /// Keeps the steps' arguments alive; the plan takes them over.
  std::deque<std::shared_ptr<void>> take_arguments() { return std::move(arguments_); }
  /// What one worker needs.
  std::int64_t scratch_floats() const { return scratch_floats_; }
  std::int64_t unpacked_bytes() const { return unpacked_bytes_; }
  std::int64_t tiles_bytes() const { return tiles_bytes_; }
  /// Where a value is after a run (with keep_values, any value; otherwise only outputs are sure to be there).
  const Place& place_of(ValueId value) const { return places_.at(value); }

  // What the per-op functions use.
  const Program& program() const { return program_; }
  const Weights& weights() const { return weights_; }
  std::int64_t row_size(ValueId value) const;
  const std::vector<float>* optional_vector(const Node& node, std::string_view role) const;
  const PackedMatrix& matrix(ValueId weight) const { return weights_.matrix(program_.value(weight).name); }
  std::span<const PackedMatrix> experts(ValueId weight) const { return weights_.experts(program_.value(weight).name); }
  const KernelTable& kernels() const { return *limits_.kernels; }
  /// As many rows as a run can have.
  std::int64_t max_rows(bool outputs) const { return outputs ? limits_.max_outputs : limits_.max_tokens; }

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

  /// A new buffer for a result, or for a temporary; used from the step that is added next on.
  Place define(ValueId value);
  Place temporary_rows(std::int64_t row_floats, bool outputs);
  int temporary(std::int64_t bytes);
  /// A buffer that lives as long as its users, by a name of its contents; whether it is new.
  std::pair<int, bool> shared_buffer(const std::string& name, std::int64_t bytes);
  /// Bytes of prepared rows, for as many rows as a run can have.
  std::int64_t tile_space_bytes(const TileSpace& tiles, bool outputs) const;
  /// A second name for (part of) a value.
  void alias(ValueId value, const Place& place) { places_[value] = place; }
  /// Notes that the step added next uses the place, and fills `rows` in when addresses are known.
  void bind(Rows& rows, const Place& place);
  void bind(Rows& rows, ValueId value) { bind(rows, places_.at(value)); }
  void bind(std::uint8_t*& pointer, int buffer);
  void bind(float*& pointer, int buffer) { bind(reinterpret_cast<std::uint8_t*&>(pointer), buffer); }
  void need_scratch(std::int64_t floats) { scratch_floats_ = std::max(scratch_floats_, floats); }
  void need_tiles(const TileSpace& tiles);
  void need_unpacked(const PackedMatrix& w);
  /// Notes that the step added next uses the place.
  void touch(const Place& place) { touch(place.buffer); }
  void touch(int buffer);

  /// Cosines and sines for a rope, computed once per run for all nodes that share them.
  void bind_rope(HeadTransform& transform, const Node& node, std::string_view prefix);

 private:
  struct RopeTable {
    RopeSpec spec;
    ValueId factors, long_factors;
    Place cosines, sines;
  };
  struct BufferUse {
    std::int64_t bytes;
    int first;
    int last;
  };

  const Program& program_;
  const Weights& weights_;
  const Limits limits_;
  std::vector<Step> few_rows_, many_rows_;
  std::deque<std::shared_ptr<void>> arguments_;
  std::vector<BufferUse> buffers_;
  std::map<ValueId, Place> places_;
  std::vector<ValueId> outputs_;  // of the function: their rows lie side by side, without padding
  std::vector<RopeTable> rope_tables_;
  std::map<std::string, int> shared_buffers_;
  std::vector<std::pair<Rows*, Place>> row_bindings_;
  std::vector<std::pair<std::uint8_t**, int>> pointer_bindings_;
  std::int64_t scratch_floats_ = 16;
  std::int64_t unpacked_bytes_ = 0;
  std::int64_t tiles_bytes_ = 0;
  int position_ = 0;  // how many steps were added, in either list
};

}  // namespace sterna::cpu
