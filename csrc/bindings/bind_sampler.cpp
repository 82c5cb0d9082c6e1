/// The sampler in Python: parameters for requests, and the sampler alone for tests and tools.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bind_engine_parts.h"
#include "bindings/engine_arguments.h"
#include "engine/random.h"
#include "engine/softmax.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace sterna::bindings {
namespace {

using Bias = std::map<std::int32_t, float>;

void set_bias(SamplingParams& params, const Bias& bias) { params.logit_bias.assign(bias.begin(), bias.end()); }

/// A sampler with its parameters.
struct BoundSampler {
  SamplingParams params;
  std::int32_t vocab_size;
  Sampler sampler;
};

/// The arguments that a choice depends on, held for the time of a call.
struct Context {
  Context(const BoundSampler& s, const py::object& history, std::size_t num_prompt, const py::object& mask)
      : tokens(to_tokens(history, "history")), mask(to_mask(mask)) {
    for (const std::int32_t token : tokens) {
      if (token < 0 || token >= s.vocab_size) throw ArgumentError("history: " + std::to_string(token) + " is no token");
    }
    if (num_prompt > tokens.size()) throw ArgumentError("num_prompt is more than the history has");
    context.history = tokens;
    context.num_prompt = num_prompt;
    context.mask = &this->mask;
  }

  std::vector<std::int32_t> tokens;
  Mask mask;
  SamplingContext context;
};

Sampled sample(BoundSampler& s, const Floats& logits, const py::object& history, std::size_t num_prompt,
               std::uint32_t choice, std::optional<int> top_logprobs, const py::object& mask) {
  Context arguments(s, history, num_prompt, mask);
  arguments.context.choice = choice;
  arguments.context.top_logprobs = top_logprobs.value_or(-1);
  return s.sampler.sample(s.params, to_row(logits, s.vocab_size), arguments.context);
}

py::array_t<double> probabilities(BoundSampler& s, const Floats& logits, const py::object& history,
                                  std::size_t num_prompt, const py::object& mask) {
  const Context arguments(s, history, num_prompt, mask);
  const auto candidates = s.sampler.candidates(s.params, to_row(logits, s.vocab_size), arguments.context);
  double total = 0.0;
  for (const Candidate& c : candidates) total += c.weight;
  py::array_t<double> row(s.vocab_size);
  std::fill_n(row.mutable_data(), s.vocab_size, 0.0);
  for (const Candidate& c : candidates) row.mutable_data()[c.token] = c.weight / total;
  return row;
}

std::int32_t enough(const BoundSampler& s, const py::object& history, std::size_t num_prompt, std::int32_t later,
                    std::int32_t most, std::optional<int> top_logprobs, const py::object& mask) {
  Context arguments(s, history, num_prompt, mask);
  arguments.context.top_logprobs = top_logprobs.value_or(-1);
  return enough_logits(s.params, arguments.context, later, most);
}

std::optional<Sampled> sample_largest(BoundSampler& s, const std::vector<std::pair<std::int32_t, float>>& largest,
                                      const py::object& history, std::size_t num_prompt, std::uint32_t choice) {
  Context arguments(s, history, num_prompt, py::none());
  arguments.context.choice = choice;
  std::vector<TokenLogit> entries;
  for (const auto& [token, logit] : largest) {
    if (token < 0 || token >= s.vocab_size) throw ArgumentError("largest: " + std::to_string(token) + " is no token");
    entries.push_back({token, logit});
  }
  return s.sampler.sample_largest(s.params, entries, arguments.context);
}

py::array_t<float> log_softmax(const Floats& logits) {
  const std::span<const float> row(logits.data(), static_cast<std::size_t>(logits.size()));
  const RowExtent extent = row_extent(row);
  if (!extent.finite) throw NumericError("the logits are not all finite");
  py::array_t<float> out(logits.size());
  if (row.empty()) return out;
  const double total = log_sum_exp(row, extent.max);
  for (std::size_t i = 0; i < row.size(); ++i) {
    out.mutable_data()[i] = static_cast<float>(static_cast<double>(row[i]) - total);
  }
  return out;
}

}  // namespace

py::list top_logprobs_list(const Sampled& sampled) {
  py::list out;
  for (const TokenLogprob& top : sampled.top_logprobs) out.append(py::make_tuple(top.token, top.logprob));
  return out;
}

void bind_sampler(py::module_& m) {
  py::class_<SamplingParams>(m, "SamplingParams")
      .def(py::init([](double temperature, std::int32_t top_k, double top_p, double min_p, double repetition_penalty,
                       std::int32_t penalty_window, double presence_penalty, double frequency_penalty, const Bias& bias,
                       std::uint64_t seed) {
             SamplingParams params{
                 temperature,       top_k, top_p, min_p, repetition_penalty, penalty_window, presence_penalty,
                 frequency_penalty, {},    seed};
             set_bias(params, bias);
             return params;
           }),
           py::kw_only(), "temperature"_a = 1.0, "top_k"_a = 0, "top_p"_a = 1.0, "min_p"_a = 0.0,
           "repetition_penalty"_a = 1.0, "penalty_window"_a = 64, "presence_penalty"_a = 0.0,
           "frequency_penalty"_a = 0.0, "logit_bias"_a = Bias(), "seed"_a = 0)
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("penalty_window", &SamplingParams::penalty_window)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_property(
          "logit_bias", [](const SamplingParams& p) { return Bias(p.logit_bias.begin(), p.logit_bias.end()); },
          &set_bias)
      .def_readwrite("seed", &SamplingParams::seed);

  py::class_<Sampled>(m, "Sampled")
      .def_readonly("token", &Sampled::token)
      .def_readonly("logprob", &Sampled::logprob)
      .def_property_readonly("top_logprobs", &top_logprobs_list);

  py::class_<BoundSampler>(m, "Sampler")
      .def(py::init([](const SamplingParams& params, std::int32_t vocab_size) {
             if (vocab_size < 1) throw ArgumentError("vocab_size must be 1 or more");
             validate(params, vocab_size);
             return std::make_unique<BoundSampler>(BoundSampler{params, vocab_size, Sampler(vocab_size)});
           }),
           "params"_a, "vocab_size"_a)
      .def("sample", &sample, "logits"_a, py::kw_only(), "history"_a = py::tuple(), "num_prompt"_a = 0, "choice"_a = 0,
           "top_logprobs"_a = py::none(), "mask"_a = py::none())
      .def("enough_logits", &enough, py::kw_only(), "history"_a = py::tuple(), "num_prompt"_a = 0, "later"_a = 0,
           "most"_a, "top_logprobs"_a = py::none(), "mask"_a = py::none())
      .def("sample_largest", &sample_largest, "largest"_a, py::kw_only(), "history"_a = py::tuple(), "num_prompt"_a = 0,
           "choice"_a = 0)
      .def("probabilities", &probabilities, "logits"_a, py::kw_only(), "history"_a = py::tuple(), "num_prompt"_a = 0,
           "mask"_a = py::none());

  m.def("random_uniform", &random_uniform, "seed"_a, "choice"_a, "position"_a,
        "The number in [0, 1) that chooses the token at `position`: Philox4x32-10 of these three.");
  m.def("log_softmax", &log_softmax, "logits"_a, "[n] -> [n]; NumericError on NaN or infinity.");
}

}  // namespace sterna::bindings
