#include "cuda/cuda_plan.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <iterator>

#include "base/error.h"
#include "base/float_mode.h"
#include "cpu/cores.h"
#include "plan/node_kinds.h"

namespace sterna::cuda {
namespace {

/// Batches of up to so many rows go as graphs, made for the next power of two.
constexpr std::int32_t kMostGraphRows = 64;

/// What these write are places in memory for others, which must not run without them.
constexpr Kernel kWriteIndices[] = {Kernel::kRoute, Kernel::kSortPairs};

std::vector<std::string> function_names(const Program& program) {
  std::vector<std::string> names;
  for (const Function& function : program.functions) names.push_back(function.name);
  return names;
}

/// A function's nodes as steps, before there is any memory for them.
struct Lowered {
  const Function& function;
  Lowering lowering;
  Placement placement;
};

std::deque<Lowered> lower_all(const Program& program, std::span<const std::string> names, const Weights& weights,
                              const sterna::KvLayout& layout, const KvStorage* kv, Constants& constants,
                              const BufferPlan::Limits& limits) {
  std::deque<Lowered> all;
  for (const std::string& name : names) {
    Lowered& lowered = all.emplace_back(program.function(name),
                                        Lowering(program, weights, layout, kv, constants, limits), Placement());
    lowered.lowering.lower(lowered.function);
    lowered.placement = lowered.lowering.plan_memory();
  }
  return all;
}

std::int64_t arena_bytes(const std::deque<Lowered>& all) {
  std::int64_t bytes = 0;
  for (const Lowered& lowered : all) bytes = std::max(bytes, lowered.placement.arena_bytes);
  return bytes;
}

CompiledFunctions::Steps finish(const Program& program, Lowered& lowered, std::uint8_t* arena,
                                const BufferPlan::Limits& limits) {
  Lowering& lowering = lowered.lowering;
  lowering.patch(lowered.placement, arena);
  CompiledFunctions::Steps steps;
  steps.function = lowered.function.name;
  steps.steps = lowering.steps();
  steps.arguments = lowering.take_arguments();
  if (lowering.zeroed() >= 0) {
    steps.zeroed = {arena + lowered.placement.offsets[static_cast<std::size_t>(lowering.zeroed())],
                    static_cast<std::size_t>(lowering.buffer_bytes(lowering.zeroed()))};
  }
  const ValueId output = lowered.function.outputs.at(0);
  steps.output_size = lowering.row_size(output);
  steps.output = lowering.rows_of(output, lowered.placement, arena);
  if (steps.output.outputs == is_sent(lowered.function) || steps.output.stride != steps.output_size) {
    throw UnsupportedModelError("the result " + program.value(output).name + " of " + lowered.function.name +
                                " has no row of its own for each output of a batch");
  }
  for (const Node& node : lowered.function.nodes) {
    for (const ValueId value : node.outputs) {
      const std::string& name = program.value(value).name;
      if (!limits.keep_values && std::ranges::find(limits.kept, name) == limits.kept.end()) continue;
      steps.kept.push_back(
          {name, node.source, lowering.rows_of(value, lowered.placement, arena), lowering.row_size(value)});
    }
  }
  return steps;
}

std::int64_t most_results(const Program& program, std::int32_t max_tokens, std::int32_t max_outputs) {
  std::int64_t most = 1;
  for (const Function& function : program.functions) {
    const std::int32_t rows = is_sent(function) ? max_tokens : max_outputs;
    most = std::max(most, row_floats(program, function.outputs.at(0)) * rows);
  }
  return most;
}

/// Of a row, for whichever function runs.
std::int64_t most_received(const Program& program) {
  std::int64_t most = 0;
  for (const Function& function : program.functions) most = std::max(most, received_floats(program, function));
  return most;
}

}  // namespace

PlanMemory plan_memory(const Program& program, const CudaPlanOptions& options) {
  const Weights weights(program);
  if (const auto found = found_devices(); static_cast<std::size_t>(options.device) < found.size()) {
    weights.check_device(program, options.device, found[static_cast<std::size_t>(options.device)].info);
  }
  const sterna::KvLayout layout(program, options.kv_type, kKvBackend);
  const BufferPlan::Limits limits{options.max_tokens, checked_outputs(options.max_tokens, options.max_outputs),
                                  options.keep_values};
  Constants constants(nullptr);
  PlanMemory memory;
  memory.weights = weights.bytes();
  memory.scratch = static_cast<std::uint64_t>(
      arena_bytes(lower_all(program, function_names(program), weights, layout, nullptr, constants, limits)) +
      most_received(program) * options.max_tokens * std::int64_t{sizeof(float)});
  const auto logits = std::ranges::find(program.functions, "logits", &Function::name);
  if (logits != program.functions.end() && !is_sent(*logits)) {
    memory.scratch += LargestLogits::bytes(static_cast<std::int32_t>(limits.max_outputs),
                                           static_cast<std::int32_t>(row_floats(program, logits->outputs.at(0))));
  }
  memory.kv_pools.assign(layout.pools().begin(), layout.pools().end());
  return memory;
}

const CompiledFunctions::Steps* CompiledFunctions::find(std::string_view name) const {
  const auto found = std::ranges::find(functions, name, &Steps::function);
  return found == functions.end() ? nullptr : &*found;
}

CudaPlan::CudaPlan(const Program& program, const TensorSource& source, const CudaPlanOptions& options)
    : ProgramPlan(program, sterna::KvLayout(program, options.kv_type, kKvBackend), options.max_tokens,
                  options.max_outputs),
      device_(std::make_shared<Device>(options.device)),
      weights_([&] {
        cpu::ThreadPool pool(options.threads == 0 ? cpu::available_cpus() : options.threads);
        return Weights(this->program(), source, pool, device_);
      }()),
      kv_(layout(), device_),
      constants_(device_),
      upload_(device_, max_tokens(), hidden_size(), most_received(this->program())),
      results_(device_,
               static_cast<std::uint64_t>(most_results(this->program(), max_tokens(), max_outputs())) * sizeof(float),
               DeviceMemory::Where::kHost) {
  if (has_logits() && !is_sent(this->program().function("logits")))
    largest_.emplace(device_, max_outputs(), vocab_size());
  compiled_ = compile(function_names(this->program()), {max_tokens(), max_outputs(), options.keep_values});
}

std::shared_ptr<CudaPlan> CudaPlan::make(const Program& program, const TensorSource& source,
                                         const CudaPlanOptions& options) {
  auto plan = in_own_thread([&] { return std::make_unique<CudaPlan>(program, source, options); });
  return {plan.release(), [](CudaPlan* made) {
            try {
              in_own_thread([made] { delete made; });
            } catch (...) {  // there is no thread, or no memory for one
              delete made;
            }
          }};
}

CudaPlan::~CudaPlan() {
  device_->table().use_device(device_->number());
  device_->table().synchronize(device_->stream());
  for (auto& [key, graph] : graphs_) drop_graph(graph);
}

void CudaPlan::drop_graph(Graph& graph) const noexcept {
  if (graph.handle != nullptr) device_->table().destroy_graph(graph.handle);
  graph.handle = nullptr;
}

CompiledFunctions CudaPlan::compile(std::span<const std::string> names, const BufferPlan::Limits& limits) {
  const FloatMode mode;
  std::deque<Lowered> all = lower_all(program(), names, weights_, layout(), &kv_, constants_, limits);
  CompiledFunctions compiled;
  compiled.arena = DeviceMemory(device_, static_cast<std::uint64_t>(arena_bytes(all)));
  for (Lowered& lowered : all) {
    compiled.functions.push_back(finish(program(), lowered, compiled.arena.data(), limits));
  }
  device_->synchronize();  // constants are there
  return compiled;
}

bool CudaPlan::launch(std::span<const Step> steps, const Launch& launch, const Interrupt* interrupt) const {
  for (const Step& step : steps) {
    if (step.is_left_out(launch)) continue;
    if (interrupt != nullptr && interrupt->due()) return false;
    device_->launch(step.kernel, step.arguments, launch);
  }
  return true;
}

void* CudaPlan::make_graph(std::span<const Step> steps, const Launch& sizes) {
  const DeviceTable& table = device_->table();
  if (!has_graphs_ || table.begin_graph(device_->stream()) != 0) {
    has_graphs_ = false;
    return nullptr;
  }
  void* graph = nullptr;
  try {
    launch(steps, sizes, nullptr);
  } catch (...) {
    table.end_graph(device_->stream(), &graph);
    if (graph != nullptr) table.destroy_graph(graph);
    throw;
  }
  device_->check(table.end_graph(device_->stream(), &graph), "making a graph");
  return graph;
}

bool CudaPlan::launch_graph(const CompiledFunctions::Steps& steps, const Batch& batch) {
  const auto bucket = [](std::int32_t count) {
    return static_cast<std::int32_t>(std::bit_ceil(static_cast<std::uint32_t>(std::max(count, 1))));
  };
  const std::int32_t tokens = bucket(batch.num_tokens());
  const std::int32_t outputs = bucket(batch.num_outputs());
  const auto [found, is_new] = graphs_.try_emplace(GraphKey{steps.function, tokens, outputs});
  if (is_new) return false;
  Graph& graph = found->second;
  if (graph.generation != upload_.generation()) drop_graph(graph);
  if (graph.handle == nullptr) {
    // A batch has at most as many sequences as rows.
    graph.handle = make_graph(steps.steps, {device_->stream(), &upload_.device_batch(), tokens, outputs, tokens});
    if (graph.handle == nullptr) return false;
    graph.generation = upload_.generation();
  }
  device_->check(device_->table().launch_graph(graph.handle, device_->stream()), "launching a graph");
  return true;
}

bool CudaPlan::run(CompiledFunctions& compiled, const Batch& batch, const Interrupt* interrupt) {
  device_->use();
  const CompiledFunctions::Steps& steps = *compiled.find(function_of(batch));
  const bool has_state = kv_.state_pool() >= 0;
  if (has_state) states_.begin(batch, static_cast<std::size_t>(kv_.state_pool()), kv_);
  kept_rows_.clear();
  bool complete = true;
  try {
    upload_.copy(batch, has_state ? &states_ : nullptr);
    device_->fill_zero(steps.zeroed.data(), steps.zeroed.size());
    const Launch sizes = {device_->stream(), &upload_.device_batch(), batch.num_tokens(), batch.num_outputs(),
                          upload_.num_sequences()};
    const bool is_few = batch.num_tokens() <= kMostGraphRows;
    if (&compiled != &compiled_ || !has_graphs_ || !is_few || !launch_graph(steps, batch)) {
      complete = launch(steps.steps, sizes, interrupt);
    }
    if (complete) fetch_results(steps, batch, sizes);
  } catch (...) {
    device_->table().synchronize(device_->stream());  // what was asked for reads memory that the next run writes
    throw;
  }
  device_->synchronize();
  if (has_state && complete) states_.finish(kv_);
  return complete;
}

bool CudaPlan::run(const Batch& batch, const Interrupt* interrupt) {
  check(batch, kv_);
  num_tokens_ = batch.num_tokens();
  num_outputs_ = batch.num_outputs();
  last_ = nullptr;
  CompiledFunctions& compiled = keeping_.choose(compiled_, batch, [&](const std::string& name) {
    return compile({&name, 1}, {max_tokens(), max_outputs(), false, batch.kept});
  });
  last_ = compiled.find(function_of(batch));
  return run(compiled, batch, interrupt);
}

void CudaPlan::fetch_outputs(const Rows& outputs, std::int64_t size, std::size_t first, std::size_t count) {
  const std::size_t row = static_cast<std::size_t>(size);
  device_->copy(results_.as<float>() + first * row, outputs.data + first * row, count * row * sizeof(float));
  std::fill_n(is_fetched_.begin() + static_cast<std::ptrdiff_t>(first), count, true);
}

void CudaPlan::fetch_results(const CompiledFunctions::Steps& steps, const Batch& batch, const Launch& launch) {
  const auto count = static_cast<std::size_t>(steps.output.outputs ? batch.num_outputs() : batch.num_tokens());
  is_fetched_.assign(count, false);
  wanted_.assign(batch.largest.begin(), batch.largest.end());
  wanted_.resize(count, 0);
  if (std::ranges::any_of(wanted_, [](std::int32_t wanted) { return wanted > 0; })) {
    largest_->find(steps.output, batch, launch);
  }
  for (std::size_t first = 0; first < count;) {
    std::size_t end = first;
    while (end < count && wanted_[end] == 0) ++end;
    if (end > first) fetch_outputs(steps.output, steps.output_size, first, end - first);
    first = end + 1;
  }
}

std::span<const float> CudaPlan::logits_row(std::size_t output) {
  const std::span<const float> logits = outputs_of("logits");
  if (!is_fetched_[output]) {
    device_->use();
    fetch_outputs(last_->output, last_->output_size, output, 1);
    device_->synchronize();
  }
  const auto width = static_cast<std::size_t>(last_->output_size);
  return logits.subspan(output * width, width);
}

std::span<const TokenLogit> CudaPlan::largest_logits(std::size_t output) const {
  if (output >= wanted_.size() || wanted_[output] == 0) return {};
  return largest_->of(output);
}

std::span<const float> CudaPlan::outputs_of(std::string_view function) const {
  if (last_ == nullptr || last_->function != function) return {};
  const std::int64_t rows = last_->output.outputs ? num_outputs_ : num_tokens_;
  return {results_.as<float>(), static_cast<std::size_t>(rows * last_->output_size)};
}

std::vector<float> CudaPlan::read_rows(const Rows& rows, std::int64_t first, std::int64_t count,
                                       std::int64_t size) const {
  device_->use();
  std::vector<float> values(static_cast<std::size_t>(count * size));
  for (std::int64_t i = 0; i < count; ++i) {
    device_->copy(values.data() + i * size, rows.row(first + i), static_cast<std::uint64_t>(size) * sizeof(float));
  }
  device_->synchronize();
  return values;
}

std::span<const float> CudaPlan::kept_row(std::string_view name, std::int32_t row, std::size_t output) const {
  if (last_ == nullptr) return {};
  const auto found = std::ranges::find(last_->kept, name, &CompiledFunctions::KeptValue::name);
  if (found == last_->kept.end()) return {};
  const std::int64_t at = found->rows.outputs ? static_cast<std::int64_t>(output) : row;
  const auto [kept, is_new] = kept_rows_.try_emplace({found->name, at});
  if (is_new) kept->second = read_rows(found->rows, at, 1, found->size);
  return kept->second;
}

std::string CudaPlan::first_non_finite(const Batch& batch, std::int32_t row) {
  check(batch, kv_);
  const std::string name(function_of(batch));
  CompiledFunctions checked = compile({&name, 1}, {batch.num_tokens(), std::max(1, batch.num_outputs()), true});
  run(checked, batch, nullptr);
  const auto output = std::ranges::find(batch.output_rows, row);
  for (const CompiledFunctions::KeptValue& value : checked.functions[0].kept) {
    if (value.rows.outputs && output == batch.output_rows.end()) continue;
    const std::int64_t at = value.rows.outputs ? output - batch.output_rows.begin() : row;
    const std::vector<float> numbers = read_rows(value.rows, at, 1, value.size);
    if (std::ranges::all_of(numbers, [](float x) { return std::isfinite(x); })) continue;
    return value.name + " (" + value.source + ")";
  }
  return {};
}

double CudaPlan::seconds_without(std::optional<Kernel> left_out, const Launch& sizes, int repetitions) {
  using Clock = std::chrono::steady_clock;
  std::vector<Step> steps;
  std::ranges::copy_if(last_->steps, std::back_inserter(steps),
                       [&](const Step& step) { return step.kernel != left_out; });
  Graph graph{make_graph(steps, sizes), 0};
  std::vector<double> seconds;
  for (int i = 0; i <= repetitions; ++i) {
    const auto begin = Clock::now();
    if (graph.handle != nullptr) {
      device_->check(device_->table().launch_graph(graph.handle, device_->stream()), "launching a graph");
    } else {
      launch(steps, sizes, nullptr);
    }
    device_->synchronize();
    if (i > 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  drop_graph(graph);
  std::ranges::sort(seconds);
  return seconds[seconds.size() / 2];
}

std::vector<KernelTime> CudaPlan::time_kernels(int repetitions) {
  if (repetitions < 1) throw ArgumentError("repetitions is " + std::to_string(repetitions) + ", must be at least 1");
  if (last_ == nullptr || compiled_.find(last_->function) != last_) {
    throw ArgumentError("nothing has run yet, or with values kept");
  }
  device_->use();
  const Launch sizes = {device_->stream(), &upload_.device_batch(), num_tokens_, num_outputs_, upload_.num_sequences()};
  const double all = seconds_without(std::nullopt, sizes, repetitions);
  const auto launched = [&](std::optional<Kernel> kernel) {
    return static_cast<int>(std::ranges::count_if(last_->steps, [&](const Step& step) {
      return (!kernel || step.kernel == kernel) && !step.is_left_out(sizes);
    }));
  };
  std::vector<KernelTime> times = {{"all", launched(std::nullopt), all}};
  for (int i = 0; i < kNumKernels; ++i) {
    const auto kernel = static_cast<Kernel>(i);
    const int count = launched(kernel);
    if (count == 0 || std::ranges::find(kWriteIndices, kernel) != std::ranges::end(kWriteIndices)) continue;
    times.push_back({kKernelNames[i], count, all - seconds_without(kernel, sizes, repetitions)});
  }
  return times;
}

PlanMemory CudaPlan::memory() const {
  PlanMemory memory;
  memory.weights = weights_.bytes();
  memory.scratch = compiled_.arena.size() + upload_.bytes() + (largest_ ? largest_->bytes() : 0);
  memory.kv_pools.assign(kv_.pools().begin(), kv_.pools().end());
  return memory;
}

std::string CudaPlan::device() const {
  return "cuda:" + std::to_string(device_->number()) + " (" + device_->info().name + ")";
}

std::vector<std::string> CudaPlan::value_names() const {
  std::vector<std::string> names;
  for (const CompiledFunctions::Steps& function : compiled_.functions) {
    for (const auto& value : function.kept) names.push_back(value.name);
  }
  return names;
}

std::vector<float> CudaPlan::value(const std::string& name) const {
  if (last_ != nullptr) {
    const auto found = std::ranges::find(last_->kept, name, &CompiledFunctions::KeptValue::name);
    if (found != last_->kept.end()) {
      return read_rows(found->rows, 0, found->rows.outputs ? num_outputs_ : num_tokens_, found->size);
    }
  }
  throw ArgumentError("the plan keeps no value \"" + name + "\" of what ran last");
}

}  // namespace sterna::cuda
