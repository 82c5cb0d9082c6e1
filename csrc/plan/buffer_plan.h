/// The buffers that the steps of a function compute in: collected while nodes become steps, then placed in one arena,
/// then their addresses are patched into the steps' arguments.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plan/kinds.h"
#include "plan/memory_planner.h"
#include "program/program.h"
#include "program/rope.h"

namespace sterna {

/// Where a value lives: a buffer of the arena, and where in its rows.
struct Place {
  int buffer = -1;
  std::int64_t offset = 0;  // floats into a row
  std::int64_t stride = 0;
  bool outputs = false;
};

/// Where the cosines and sines of a rope's positions are, [T][pairs] each: computed once per run for all nodes that
/// share them.
struct RopePlace {
  RopeSpec spec;
  ValueId factors, long_factors;
  Place cosines, sines;
};

class BufferPlan {
 public:
  struct Limits {
    std::int64_t max_tokens;
    std::int64_t max_outputs;
    bool keep_values;  // no buffer is used twice, so that every value can be looked at after a run
    std::span<const std::string> kept = {};  // the same for values of these names
  };

  BufferPlan(const Program& program, const Limits& limits) : program_(program), limits_(limits) {}

  const Program& program() const { return program_; }
  /// Where a value is after a run (with keep_values, any value; otherwise only outputs are sure to be there).
  const Place& place_of(ValueId value) const { return places_.at(value); }
  std::int64_t row_size(ValueId value) const;
  /// As many rows as a run can have.
  std::int64_t max_rows(bool outputs) const { return outputs ? limits_.max_outputs : limits_.max_tokens; }

  /// A new buffer for a result, or for a temporary; used from the step that is added next on.
  Place define(ValueId value);
  Place temporary_rows(std::int64_t row_floats, bool outputs);
  int temporary(std::int64_t bytes);
  /// A buffer that lives as long as its users, by a name of its contents; whether it is new.
  std::pair<int, bool> shared_buffer(const std::string& name, std::int64_t bytes);
  /// Those of a rope or attention node, and whether they are new: then a step must compute them.
  std::pair<RopePlace, bool> rope_place(const Node& node, std::string_view prefix);
  /// A second name for (part of) a value.
  void alias(ValueId value, const Place& place) { places_[value] = place; }
  /// Notes that the step added next uses the place, and fills `rows` in when addresses are known.
  void bind(Rows& rows, const Place& place);
  void bind(Rows& rows, ValueId value) { bind(rows, places_.at(value)); }
  template <class T>
  void bind(T*& pointer, int buffer, std::int64_t offset = 0) {
    touch(buffer);
    const auto set = [](void* to, std::uint8_t* begin) { *static_cast<T**>(to) = reinterpret_cast<T*>(begin); };
    pointer_bindings_.push_back({&pointer, set, buffer, offset});
  }
  /// A buffer keeps its contents from the first step to the last, and shares its bytes with no other.
  void keep(int buffer) { buffers_[static_cast<std::size_t>(buffer)].is_kept = true; }
  /// Makes a buffer longer; the offset of what is new.
  std::int64_t extend(int buffer, std::int64_t bytes);
  std::int64_t buffer_bytes(int buffer) const { return buffers_[static_cast<std::size_t>(buffer)].bytes; }
  /// Notes that the step added next uses the place.
  void touch(const Place& place) { touch(place.buffer); }
  void touch(int buffer);

  /// Places all buffers; afterwards the steps point into `arena`.
  Placement plan_memory() const;
  void patch(const Placement& placement, std::uint8_t* arena) const;
  /// The rows of a value when the arena is there.
  Rows rows_of(ValueId value, const Placement& placement, std::uint8_t* arena) const;

 protected:
  /// Of the function: their rows lie side by side, without padding.
  void set_outputs(const std::vector<ValueId>& outputs) { outputs_ = outputs; }
  /// A step was added.
  void advance() { ++position_; }

 private:
  struct BufferUse {
    std::int64_t bytes;
    int first;
    int last;
    bool is_kept = false;
  };
  struct PointerBinding {
    void* pointer;
    void (*set)(void* pointer, std::uint8_t* begin);  // knows the pointer's type
    int buffer;
    std::int64_t offset;
  };

  const Program& program_;
  const Limits limits_;
  std::vector<BufferUse> buffers_;
  std::map<ValueId, Place> places_;
  std::vector<ValueId> outputs_;
  std::map<std::string, int> shared_buffers_;
  std::vector<RopePlace> rope_places_;
  std::vector<std::pair<Rows*, Place>> row_bindings_;
  std::vector<PointerBinding> pointer_bindings_;
  int position_ = 0;  // how many steps were added
};

}  // namespace sterna
