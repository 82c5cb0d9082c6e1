#include "cpu/compiled_steps.h"

#include <algorithm>

#include "base/error.h"
#include "base/float_mode.h"
#include "plan/node_kinds.h"

namespace sterna::cpu {
namespace {

/// A function's nodes as steps, before there is any memory for them.
struct Lowered {
  const Function& function;
  Lowering lowering;
  Placement placement;
};

std::deque<Lowered> lower_all(const Program& program, std::span<const std::string> names, const Weights& weights,
                              const KernelTable& kernels, const BufferPlan::Limits& limits) {
  std::deque<Lowered> all;
  for (const std::string& name : names) {
    Lowered& lowered =
        all.emplace_back(program.function(name), Lowering(program, weights, kernels, limits), Placement());
    lowered.lowering.lower(lowered.function);
    lowered.placement = lowered.lowering.plan_memory();
  }
  return all;
}

/// What one worker and all together need for whichever function runs.
struct Needs {
  std::int64_t arena = 0;
  std::int64_t scratch_floats = 0;
  std::int64_t unpacked = 0;
  std::int64_t tiles = 0;
};

Needs needs_of(const std::deque<Lowered>& all) {
  Needs needs;
  for (const Lowered& lowered : all) {
    needs.arena = std::max(needs.arena, lowered.placement.arena_bytes);
    needs.scratch_floats = std::max(needs.scratch_floats, lowered.lowering.scratch_floats());
    needs.unpacked = std::max(needs.unpacked, lowered.lowering.unpacked_bytes());
    needs.tiles = std::max(needs.tiles, lowered.lowering.tiles_bytes());
  }
  return needs;
}

CompiledSteps finish(const Program& program, Lowered& lowered, std::uint8_t* arena, const BufferPlan::Limits& limits,
                     std::size_t num_workers) {
  auto& [function, lowering, placement] = lowered;
  lowering.patch(placement, arena);
  CompiledSteps steps;
  steps.function = function.name;
  steps.few_rows = lowering.few_rows();
  steps.many_rows = lowering.many_rows();
  steps.arguments = lowering.take_arguments();
  steps.ranges = std::vector<WorkRange>(steps.many_rows.size() * num_workers);
  const ValueId output = function.outputs.at(0);
  steps.output_size = static_cast<std::int32_t>(lowering.row_size(output));
  steps.output = lowering.rows_of(output, placement, arena);
  if (steps.output.outputs == is_sent(function) || steps.output.stride != steps.output_size) {
    throw UnsupportedModelError("the result " + program.value(output).name + " of " + function.name +
                                " has no row of its own for each output of a batch");
  }
  for (const Node& node : function.nodes) {
    for (const ValueId value : node.outputs) {
      const std::string& name = program.value(value).name;
      if (!limits.keep_values && std::ranges::find(limits.kept, name) == limits.kept.end()) continue;
      steps.kept.push_back({name, node.source, lowering.rows_of(value, placement, arena), lowering.row_size(value)});
    }
  }
  return steps;
}

}  // namespace

CompiledFunctions CompiledFunctions::compile(const Program& program, std::span<const std::string> names,
                                             const Weights& weights, const KernelTable& kernels,
                                             const BufferPlan::Limits& limits, int num_workers) {
  const FloatMode mode;  // for the constants of steps
  std::deque<Lowered> all = lower_all(program, names, weights, kernels, limits);
  const Needs needs = needs_of(all);
  CompiledFunctions compiled;
  compiled.arena = Buffer(static_cast<std::size_t>(needs.arena));
  for (Lowered& lowered : all) {
    compiled.functions.push_back(
        finish(program, lowered, compiled.arena.data(), limits, static_cast<std::size_t>(num_workers)));
  }
  compiled.scratch.resize(static_cast<std::size_t>(num_workers));
  for (WorkerScratch& scratch : compiled.scratch) {
    scratch.floats = Buffer(static_cast<std::size_t>(needs.scratch_floats) * sizeof(float));
    scratch.unpacked = Buffer(static_cast<std::size_t>(needs.unpacked));
    scratch.tiles = Buffer(static_cast<std::size_t>(needs.tiles));
  }
  return compiled;
}

std::uint64_t CompiledFunctions::bytes_of(const Program& program, std::span<const std::string> names,
                                          const Weights& weights, const KernelTable& kernels,
                                          const BufferPlan::Limits& limits, int num_workers) {
  const Needs needs = needs_of(lower_all(program, names, weights, kernels, limits));
  const std::int64_t per_worker = needs.scratch_floats * 4 + needs.unpacked + needs.tiles;
  return static_cast<std::uint64_t>(needs.arena + per_worker * num_workers);
}

std::uint64_t CompiledFunctions::bytes() const {
  std::uint64_t total = arena.size();
  for (const WorkerScratch& worker : scratch) {
    total += worker.floats.size() + worker.unpacked.size() + worker.tiles.size();
  }
  return total;
}

const CompiledSteps* CompiledFunctions::find(std::string_view name) const {
  const auto found = std::find_if(functions.begin(), functions.end(),
                                  [&](const CompiledSteps& steps) { return steps.function == name; });
  return found == functions.end() ? nullptr : &*found;
}

std::vector<std::string> function_names(const Program& program) {
  std::vector<std::string> names;
  for (const Function& function : program.functions) names.push_back(function.name);
  return names;
}

}  // namespace sterna::cpu
