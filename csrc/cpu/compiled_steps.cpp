#include "cpu/compiled_steps.h"

#include "base/error.h"

namespace sterna::cpu {

CompiledSteps CompiledSteps::compile(const Program& program, const Weights& weights, const Lowering::Limits& limits,
                                     int num_workers) {
  const Function& function = program.function("logits");
  const auto workers = static_cast<std::size_t>(num_workers);
  Lowering lowering(program, weights, limits);
  lowering.lower(function);
  const Placement placement = lowering.plan_memory();

  CompiledSteps steps;
  steps.arena = Buffer(static_cast<std::size_t>(placement.arena_bytes));
  lowering.patch(placement, steps.arena.data());
  steps.few_rows = lowering.few_rows();
  steps.many_rows = lowering.many_rows();
  steps.arguments_ = lowering.take_arguments();
  steps.ranges = std::vector<WorkRange>(steps.many_rows.size() * workers);

  const auto rows_of = [&](ValueId value) {
    const Place& place = lowering.place_of(value);
    Rows rows;
    const std::int64_t begin = placement.offsets[static_cast<std::size_t>(place.buffer)];
    rows.data = reinterpret_cast<float*>(steps.arena.data() + begin) + place.offset;
    rows.stride = place.stride;
    rows.outputs = place.outputs;
    return rows;
  };
  const ValueId output = function.outputs.at(0);
  steps.vocab_size = static_cast<std::int32_t>(lowering.row_size(output));
  steps.logits = rows_of(output);
  if (!steps.logits.outputs || steps.logits.stride != steps.vocab_size) {
    throw UnsupportedModelError("the logits " + program.value(output).name + " are not the result of an unembed");
  }
  if (limits.keep_values) {
    for (const Node& node : function.nodes) {
      for (const ValueId value : node.outputs) {
        steps.kept.push_back({program.value(value).name, node.source, rows_of(value), lowering.row_size(value)});
      }
    }
  }
  steps.scratch.resize(workers);
  for (WorkerScratch& scratch : steps.scratch) {
    scratch.floats = Buffer(static_cast<std::size_t>(lowering.scratch_floats()) * sizeof(float));
    scratch.unpacked = Buffer(static_cast<std::size_t>(lowering.unpacked_bytes()));
    scratch.tiles = Buffer(static_cast<std::size_t>(lowering.tiles_bytes()));
  }
  return steps;
}

std::uint64_t CompiledSteps::bytes() const {
  std::uint64_t total = arena.size();
  for (const WorkerScratch& worker : scratch) {
    total += worker.floats.size() + worker.unpacked.size() + worker.tiles.size();
  }
  return total;
}

}  // namespace sterna::cpu
