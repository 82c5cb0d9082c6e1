/// The steps of one function, with the memory that they compute in.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "cpu/lowering.h"
#include "cpu/steps.h"
#include "cpu/weights.h"
#include "cpu/work_range.h"
#include "program/program.h"

namespace sterna::cpu {

struct CompiledSteps {
  struct KeptValue {
    std::string name;
    std::string source;  // the line of the model file
    Rows rows;
    std::int64_t size;
  };

  std::vector<Step> few_rows, many_rows;
  std::vector<WorkRange> ranges;  // [step][worker]
  Buffer arena;
  std::vector<WorkerScratch> scratch;
  std::vector<KeptValue> kept;  // with keep_values: the results of all nodes, in execution order
  Rows logits;
  std::int32_t vocab_size = 0;

  std::uint64_t bytes() const;

  /// Compiles the function "logits" for `num_workers`. Throws UnsupportedModelError.
  static CompiledSteps compile(const Program& program, const Weights& weights, const Lowering::Limits& limits,
                               int num_workers);

 private:
  std::deque<std::shared_ptr<void>> arguments_;
};

}  // namespace sterna::cpu
