/// Plans in Python: compiling a Program for the CPU, running a batch by hand (tests, `sterna diff`), instruction sets.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/plan_arguments.h"
#include "cpu/cores.h"
#include "cpu/cpu_plan.h"
#include "cpu/isa.h"
#include "engine/kv_cache.h"
#include "plan/chain_plan.h"
#include "plan/memory_planner.h"
#include "plan/program_plan.h"
#include "quant/layout.h"

namespace py = pybind11;

namespace sterna::bindings {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Ints = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

cpu::CpuPlanOptions plan_options(int threads, const std::string& isa, const std::string& kv_dtype,
                                 std::int32_t max_tokens, std::int32_t max_outputs) {
  cpu::CpuPlanOptions options;
  options.threads = threads;
  options.isa = isa;
  options.kv_type = kv_type_from(kv_dtype);
  options.max_tokens = max_tokens;
  options.max_outputs = max_outputs;
  return options;
}

std::span<const std::int32_t> span_of(const Ints& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

py::array_t<float> run(ProgramPlan& plan, const Ints& tokens, const Ints& positions, const Ints& sequences,
                       const std::vector<std::vector<std::int32_t>>& page_tables, const Ints& output_rows,
                       const std::string& function, const std::vector<std::uint8_t>& long_sequences,
                       const std::vector<std::int32_t>& largest, const std::optional<Floats>& received) {
  if (function != "logits" && function != "encode") throw ArgumentError("a plan runs no function " + function);
  std::vector<std::span<const std::int32_t>> tables;
  for (const auto& table : page_tables) tables.insert(tables.end(), plan.kv_pools().size(), table);
  Batch batch;
  batch.tokens = span_of(tokens);
  batch.positions = span_of(positions);
  batch.sequences = span_of(sequences);
  batch.page_tables = tables;
  batch.num_pools = plan.kv_pools().size();
  batch.output_rows = span_of(output_rows);
  batch.encode = function == "encode";
  batch.long_sequences = long_sequences;
  batch.largest = largest;
  if (received) batch.received = {received->data(), static_cast<std::size_t>(received->size())};
  {
    const GilRelease release;
    plan.run(batch, nullptr);
  }
  const auto width = static_cast<std::size_t>(batch.encode ? plan.encoding().size : plan.vocab_size());
  // A part of a chain gives a row for each token.
  const std::size_t count = (batch.encode ? plan.encodings() : plan.logits()).size() / std::max<std::size_t>(1, width);
  py::array_t<float> rows({count, width});
  for (std::size_t i = 0; i < count; ++i) {
    const auto row = batch.encode ? plan.encodings().subspan(i * width, width) : plan.logits_row(i);
    std::ranges::copy(row, rows.mutable_data() + i * width);
  }
  return rows;
}

py::array_t<float> value(const ProgramPlan& plan, const std::string& name) {
  const std::vector<float> rows = plan.value(name);
  py::array_t<float> array(static_cast<py::ssize_t>(rows.size()));
  std::copy(rows.begin(), rows.end(), array.mutable_data());
  return array;
}

/// A tensor's bytes, packed as a plan packs them and read back.
py::tuple pack_and_dequantize(const Bytes& data, const std::string& format_name, std::int64_t n, std::int64_t k) {
  const Format* format = find_format(format_name);
  if (format == nullptr) throw ArgumentError("no format " + format_name);
  PackedMatrix matrix = make_matrix(*format, n, k);
  const std::int64_t row_bytes = k / format->block_size * format->block_bytes;
  const std::int64_t size = n * row_bytes + format->tail_bytes;
  if (data.size() != size)
    throw ArgumentError("data has " + std::to_string(data.size()) + " bytes, not " + std::to_string(size));
  const auto bytes =
      std::span(data.data(), static_cast<std::size_t>(size)).first(static_cast<std::size_t>(n * row_bytes));
  bool finite = format->tail_bytes == 0 || set_tensor_scale(matrix, {data.data() + bytes.size(), format->tail_bytes});
  for (std::int64_t panel = 0; panel < matrix.panels(); ++panel) {
    const auto begin = static_cast<std::size_t>(panel * kPanelRows * row_bytes);
    const auto count = std::min(bytes.size() - begin, static_cast<std::size_t>(kPanelRows * row_bytes));
    finite = pack_panel(matrix, panel, bytes.subspan(begin, count)) && finite;
  }
  py::array_t<float> values({static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(k)});
  for (std::int64_t row = 0; row < n; ++row) dequantize_row(matrix, row, values.mutable_data() + row * k);
  return py::make_tuple(values, matrix.bytes.size(), finite);
}

py::tuple place_buffers(const std::vector<std::tuple<std::int64_t, int, int>>& buffers) {
  std::vector<Lifetime> lifetimes;
  for (const auto& [bytes, first, last] : buffers) lifetimes.push_back({bytes, first, last});
  const Placement placement = place(lifetimes);
  return py::make_tuple(placement.offsets, placement.arena_bytes);
}

}  // namespace

void bind_plan(py::module_& m) {
  m.def(
      "compiled_isas",
      [] {
        std::vector<std::string> names;
        for (const std::string_view name : cpu::compiled_levels()) names.emplace_back(name);
        return names;
      },
      "Instruction sets of this build, worst first.");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (const std::string_view name : cpu::compiled_levels()) {
          if (cpu::is_supported(name)) names.emplace_back(name);
        }
        return names;
      },
      "Those of them that this CPU can run.");
  m.def(
      "chosen_isa", [] { return std::string(cpu::chosen_level()); },
      "The one in use: $STERNA_ISA, or the best. DeviceError.");
  m.def("available_cpus", &cpu::available_cpus,
        "Workers that a plan has by default: fast physical cores that this process may use, within its quota.");
  m.def("place_buffers", &place_buffers, py::arg("buffers"),
        "The memory planner: (bytes, first step, last step) of each buffer -> offsets, bytes of the arena.");
  m.def("pack_and_dequantize", &pack_and_dequantize, py::arg("data"), py::arg("format"), py::arg("n"), py::arg("k"),
        "A tensor packed to its layout and read back: values [n, k], packed bytes, whether all scales are finite.");
  m.def(
      "packed_bytes",
      [](const std::string& format_name, std::int64_t n, std::int64_t k) {
        const Format* format = find_format(format_name);
        if (format == nullptr) throw ArgumentError("no format " + format_name);
        return (n + kPanelRows - 1) / kPanelRows * panel_bytes(layout_for(*format), *format, k);
      },
      py::arg("format"), py::arg("n"), py::arg("k"), "Bytes of a packed [n, k] matrix.");

  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan");
  py::class_<ProgramPlan, Plan, std::shared_ptr<ProgramPlan>>(m, "ProgramPlan", "A Program, compiled for one device.")
      .def(
          "run", &run, py::arg("tokens"), py::arg("positions"), py::arg("sequences"), py::arg("page_tables"),
          py::arg("output_rows"), py::arg("function") = "logits", py::kw_only(),
          py::arg("long_sequences") = std::vector<std::uint8_t>(), py::arg("largest") = std::vector<std::int32_t>(),
          py::arg("received") = py::none(),
          "Runs one batch, each sequence with one page table for all pools; logits [num_outputs, vocab_size], or "
          "vectors [num_outputs, encoding_size]. Of a part of a chain: it gets `received` [num_tokens, n] from the one "
          "before it, and gives such rows for the next.")
      .def_property_readonly("most_largest", &ProgramPlan::most_largest)
      .def(
          "largest_logits",
          [](const ProgramPlan& plan, std::size_t output) {
            std::vector<std::pair<std::int32_t, float>> entries;
            for (const auto& [token, logit] : plan.largest_logits(output)) entries.emplace_back(token, logit);
            return entries;
          },
          py::arg("output"), "(token, logit) of an output of the last run that asked for some.")
      .def_property_readonly("longrope_context", &ProgramPlan::longrope_context)
      .def(
          "reserve_pages",
          [](ProgramPlan& plan, std::int32_t num_pages) {
            for (std::size_t pool = 0; pool < plan.kv_pools().size(); ++pool) plan.reserve_pages(pool, num_pages);
          },
          py::arg("num_pages"), "As many in each pool.")
      .def("value", &value, py::arg("name"), "A node's result after a run, flat; with keep_values only.")
      .def_property_readonly("value_names", &ProgramPlan::value_names)
      .def_property_readonly("vocab_size", &ProgramPlan::vocab_size)
      .def_property_readonly("has_logits", &ProgramPlan::has_logits)
      .def_property_readonly("encoding_size", [](const ProgramPlan& plan) { return plan.encoding().size; })
      .def_property_readonly("encodes_whole", [](const ProgramPlan& plan) { return plan.encoding().whole; })
      .def_property_readonly("max_tokens", &ProgramPlan::max_tokens)
      .def_property_readonly("max_outputs", &ProgramPlan::max_outputs)
      .def_property_readonly("num_pages", [](const ProgramPlan& plan) { return plan.num_pages(0); })
      .def_property_readonly("kv_layout", &ProgramPlan::kv_layout)
      .def_property_readonly("layouts", &ProgramPlan::layouts)
      .def_property_readonly("weight_bytes", [](const ProgramPlan& plan) { return plan.memory().weights; })
      .def_property_readonly("scratch_bytes", [](const ProgramPlan& plan) { return plan.memory().scratch; })
      .def_property_readonly(
          "kv_pools", [](const ProgramPlan& plan) { return pools_of(plan.memory()); },
          "(window, bytes of a page) of each pool.");
  py::class_<cpu::CpuPlan, ProgramPlan, std::shared_ptr<cpu::CpuPlan>>(m, "CpuPlan")
      .def_property_readonly("isa", &cpu::CpuPlan::isa)
      .def_property_readonly("threads", &cpu::CpuPlan::threads);

  py::class_<ChainPlan, ProgramPlan, std::shared_ptr<ChainPlan>>(m, "ChainPlan")
      .def_property_readonly("parts", &ChainPlan::parts);
  m.def(
      "compile_chain",
      [](const Program& program, const std::vector<std::shared_ptr<ProgramPlan>>& parts) {
        return std::make_shared<ChainPlan>(program, parts);
      },
      py::arg("program"), py::arg("parts"), "Plans of the parts of a program (Program.split_layers) as one plan.");

  m.def(
      "plan_memory",
      [](const Program& program, int threads, const std::string& isa, const std::string& kv_dtype,
         std::int32_t max_tokens, std::int32_t max_outputs) {
        const PlanMemory memory =
            cpu::plan_memory(program, plan_options(threads, isa, kv_dtype, max_tokens, max_outputs));
        return py::make_tuple(memory.weights, memory.scratch, pools_of(memory));
      },
      py::arg("program"), py::kw_only(), py::arg("threads") = 0, py::arg("isa") = "", py::arg("kv_dtype") = "f16",
      py::arg("max_tokens") = 512, py::arg("max_outputs") = 64,
      "Bytes of weights and scratch that compile_cpu with these arguments will hold, and (window, bytes of a page) of "
      "each pool of the KV cache. Reads no tensor; takes memory for steps and vectors (norms, biases) while it plans.");
  m.def("pool_page_limit", &pool_page_limit, py::arg("window"), py::arg("kv_tokens"), py::arg("max_sequences"),
        py::arg("max_tokens"), py::arg("page_bytes"), "Pages that an engine lets a pool have.");

  m.def(
      "compile_cpu",
      [](const Program& program, const py::object& source, int threads, const std::string& isa,
         const std::string& kv_dtype, std::int32_t max_tokens, std::int32_t max_outputs, bool keep_values,
         const std::vector<std::shared_ptr<GgufModel>>& adapters, const std::shared_ptr<cpu::CpuPlan>& share_threads) {
        cpu::CpuPlanOptions options = plan_options(threads, isa, kv_dtype, max_tokens, max_outputs);
        options.keep_values = keep_values;
        if (share_threads) options.pool = share_threads->pool();
        const std::unique_ptr<TensorSource> tensors = tensor_source(source, adapters);
        const GilRelease release;
        return std::make_shared<cpu::CpuPlan>(program, *tensors, options);
      },
      py::arg("program"), py::arg("source"), py::kw_only(), py::arg("threads") = 0, py::arg("isa") = "",
      py::arg("kv_dtype") = "f16", py::arg("max_tokens") = 512, py::arg("max_outputs") = 64,
      py::arg("keep_values") = false, py::arg("adapters") = std::vector<std::shared_ptr<GgufModel>>(),
      py::arg("share_threads") = py::none(),
      "Compiles a program for the CPU; `source` is a Gguf, or a dict of tensor bytes, and `adapters` are the files "
      "that weights lora.0, lora.1, ... are in.");
}

}  // namespace sterna::bindings
