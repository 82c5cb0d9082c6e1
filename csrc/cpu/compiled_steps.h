/// The steps of a program's functions, with the memory that they compute in, one function at a time.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "cpu/lowering.h"
#include "cpu/steps.h"
#include "cpu/weights.h"
#include "cpu/work_range.h"
#include "program/program.h"

namespace sterna::cpu {

/// The steps of one function.
struct CompiledSteps {
  struct KeptValue {
    std::string name;
    std::string source;  // the line of the model file
    Rows rows;
    std::int64_t size;
  };

  std::string function;
  std::vector<Step> few_rows, many_rows;
  std::vector<WorkRange> ranges;  // [step][worker]
  std::vector<KeptValue> kept;    // results of nodes that are kept, in execution order
  Rows output;                    // one row per output of the batch, or where it is sent per token, without gaps
  std::int32_t output_size = 0;   // floats of such a row
  std::deque<std::shared_ptr<void>> arguments;
};

struct CompiledFunctions {
  std::deque<CompiledSteps> functions;
  Buffer arena;
  std::vector<WorkerScratch> scratch;

  std::uint64_t bytes() const;
  /// The function of that name, or null.
  const CompiledSteps* find(std::string_view name) const;
  CompiledSteps* find(std::string_view name) {
    return const_cast<CompiledSteps*>(static_cast<const CompiledFunctions*>(this)->find(name));
  }

  /// Compiles functions of the program for `num_workers`. Throws UnsupportedModelError.
  static CompiledFunctions compile(const Program& program, std::span<const std::string> names, const Weights& weights,
                                   const KernelTable& kernels, const BufferPlan::Limits& limits, int num_workers);
  /// bytes() of the result, without allocating any of it.
  static std::uint64_t bytes_of(const Program& program, std::span<const std::string> names, const Weights& weights,
                                const KernelTable& kernels, const BufferPlan::Limits& limits, int num_workers);
};

/// The names of a program's functions.
std::vector<std::string> function_names(const Program& program);

}  // namespace sterna::cpu
