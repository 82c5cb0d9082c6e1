/// The engine in Python: Engine, RequestHandle, Notifier. Waiting releases the GIL and looks for signals.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bind_engine_parts.h"
#include "bindings/bindings.h"
#include "bindings/engine_arguments.h"
#include "bindings/py_plan.h"
#include "engine/engine.h"
#include "engine/notifier.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace sterna::bindings {
namespace {

using Clock = std::chrono::steady_clock;

/// Ctrl-C is seen within this time.
constexpr std::chrono::milliseconds kSlice{50};

/// Repeats `attempt(slice)`, without the GIL, until it is true or the time is up; false then. Python's signal handlers
/// run in between.
template <class Attempt>
bool wait(std::optional<double> timeout, Attempt attempt) {
  if (timeout && std::isnan(*timeout)) throw ArgumentError("timeout is NaN");
  const bool forever = !timeout || *timeout > 1e9;
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(forever ? 0.0 : std::max(*timeout, 0.0)));
  while (true) {
    auto slice = kSlice;
    if (!forever) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
      slice = std::clamp(left, std::chrono::milliseconds{0}, kSlice);
    }
    {
      const GilRelease release;
      if (attempt(slice)) return true;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!forever && Clock::now() >= deadline) return false;
  }
}

py::object next_event(RequestHandle& handle, std::optional<double> timeout) {
  std::optional<Event> event;
  wait(timeout, [&](std::chrono::milliseconds slice) {
    event = handle.next(slice);
    return event || handle.exhausted();
  });
  return py::cast(std::move(event));
}

void wait_finished(RequestHandle& handle, std::optional<double> timeout) {
  const bool finished = wait(timeout, [&](std::chrono::milliseconds slice) { return handle.wait_finished(slice); });
  if (finished) return;
  PyErr_SetString(PyExc_TimeoutError, "the request has not finished in time");
  throw py::error_already_set();
}

std::vector<Event> all_events(RequestHandle& handle, std::optional<double> timeout) {
  wait_finished(handle, timeout);
  std::vector<Event> events;
  while (auto event = handle.next(std::chrono::milliseconds{0})) events.push_back(std::move(*event));
  return events;
}

py::array_t<float> scores(RequestHandle& handle, std::optional<double> timeout) {
  wait_finished(handle, timeout);
  const RequestHandle::Scores result = handle.scores();
  auto owner = std::make_unique<std::shared_ptr<const float[]>>(result.data);
  const float* data = owner->get();
  const py::capsule capsule(owner.release(), [](void* p) { delete static_cast<std::shared_ptr<const float[]>*>(p); });
  std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(result.rows)};
  if (result.columns > 0) shape.push_back(static_cast<py::ssize_t>(result.columns));
  return py::array_t<float>(shape, data, capsule);
}

py::object finish_reason(const Event& event) {
  switch (event.finish) {
    case FinishReason::kStop:
      return py::str("stop");
    case FinishReason::kLength:
      return py::str("length");
    case FinishReason::kCancelled:
      return py::str("cancelled");
    default:
      return py::none();
  }
}

py::object stop_of(const Event& event) {
  if (const auto* token = std::get_if<std::int32_t>(&event.stop)) return py::int_(*token);
  if (const auto* text = std::get_if<std::string>(&event.stop)) return py::str(*text);
  return py::none();
}

/// Engines that are still open when the interpreter ends: their threads must not meet a Python that is going away.
class OpenEngines {
 public:
  void add(const std::shared_ptr<Engine>& engine) {
    const std::lock_guard lock(mutex_);
    std::erase_if(engines_, [](const auto& e) { return e.expired(); });
    engines_.push_back(engine);
  }
  void close_all() {
    std::vector<std::weak_ptr<Engine>> engines;
    {
      const std::lock_guard lock(mutex_);
      engines.swap(engines_);
    }
    const GilRelease release;
    for (const auto& weak : engines) {
      if (const auto engine = weak.lock()) engine->close();
    }
  }

 private:
  std::mutex mutex_;
  std::vector<std::weak_ptr<Engine>> engines_;
};

/// The plan's C++ object; of one written in Python also its Python half, which holds the methods.
std::shared_ptr<Plan> to_plan(const py::object& plan) {
  auto shared = plan.cast<std::shared_ptr<Plan>>();
  if (!py::isinstance<PyPlan>(plan)) return shared;
  return {shared.get(), [object = shared_object(plan)](Plan*) mutable { object.reset(); }};
}

std::shared_ptr<Engine> make_engine(const py::object& plan, std::shared_ptr<Pieces> pieces, std::int32_t context,
                                    std::int32_t max_sequences, std::optional<std::int64_t> kv_tokens,
                                    std::int32_t max_waiting, const py::object& draft, const py::object& step_clock) {
  EngineOptions options;
  options.context = context;
  options.max_sequences = max_sequences;
  options.max_waiting = max_waiting;
  if (!step_clock.is_none()) {
    options.step_clock = [callable = shared_object(step_clock)] {
      const py::gil_scoped_acquire gil;
      return (*callable)().cast<double>();
    };
  }
  if (kv_tokens) {
    if (*kv_tokens < 1) throw ArgumentError("kv_tokens is " + std::to_string(*kv_tokens) + "; it must be 1 or more");
    options.kv_tokens = *kv_tokens;
  }
  // Closing joins a thread that may be waiting for the GIL.
  const auto destroy = [](Engine* engine) {
    std::optional<GilRelease> release;
    if (PyGILState_Check() != 0) release.emplace();
    delete engine;
  };
  auto draft_plan = draft.is_none() ? nullptr : to_plan(draft);
  return {new Engine(to_plan(plan), std::move(pieces), options, std::move(draft_plan)), destroy};
}

RequestTerms terms(bool background, std::optional<double> timeout, const py::bytes& context_key,
                   std::shared_ptr<SequenceContext> context) {
  if (context && std::string(context_key).empty()) throw ArgumentError("a context needs a context_key");
  return {background ? Priority::kBackground : Priority::kInteractive, timeout, std::string(context_key),
          std::move(context)};
}

std::shared_ptr<SequenceContext> make_context(
    std::int32_t adapter, float adapter_scale,
    const std::optional<py::array_t<float, py::array::c_style | py::array::forcecast>>& embeddings,
    const py::object& encoder_tokens) {
  auto context = std::make_shared<SequenceContext>();
  context->adapter = adapter;
  context->adapter_scale = adapter_scale;
  context->encoder_tokens = to_tokens(encoder_tokens, "encoder_tokens");
  if (embeddings) context->embeddings.assign(embeddings->data(), embeddings->data() + embeddings->size());
  return context;
}

std::unique_ptr<RequestHandle> submit(Engine& engine, const py::object& tokens, std::optional<std::int32_t> max_tokens,
                                      const std::optional<SamplingParams>& sampling, std::uint32_t choice,
                                      const py::object& stop_ids, std::vector<std::string> stop_strings,
                                      std::optional<int> top_logprobs, const py::object& mask, bool special,
                                      bool drop_leading_space, std::optional<std::int32_t> draft_tokens,
                                      bool shift_context, bool background, std::optional<double> timeout,
                                      const py::bytes& context_key, std::shared_ptr<SequenceContext> context) {
  if (top_logprobs && *top_logprobs < 0) throw ArgumentError("top_logprobs must not be negative");
  GenerateRequest request;
  request.tokens = to_tokens(tokens, "tokens");
  request.max_tokens = max_tokens;
  if (sampling) request.sampling = *sampling;
  request.choice = choice;
  request.stop_ids = to_tokens(stop_ids, "stop_ids");
  request.stop_strings = std::move(stop_strings);
  request.top_logprobs = top_logprobs.value_or(-1);
  request.mask = to_mask(mask);
  request.special = special;
  request.drop_leading_space = drop_leading_space;
  request.draft_tokens = draft_tokens;
  request.shift_context = shift_context;
  request.terms = terms(background, timeout, context_key, std::move(context));
  const GilRelease release;
  return engine.submit(std::move(request));
}

std::unique_ptr<RequestHandle> submit_score(Engine& engine, const py::object& tokens, std::int32_t positions_from,
                                            bool logits, std::string hidden, bool background,
                                            std::optional<double> timeout, const py::bytes& context_key,
                                            std::shared_ptr<SequenceContext> context) {
  ScoreRequest request{to_tokens(tokens, "tokens"), positions_from, logits || !hidden.empty(), std::move(hidden),
                       terms(background, timeout, context_key, std::move(context))};
  const GilRelease release;
  return engine.submit(std::move(request));
}

std::unique_ptr<RequestHandle> submit_embed(Engine& engine, const py::object& tokens, bool background,
                                            std::optional<double> timeout, const py::bytes& context_key) {
  EmbedRequest request{to_tokens(tokens, "tokens"), terms(background, timeout, context_key, nullptr)};
  const GilRelease release;
  return engine.submit(std::move(request));
}

using PageBytes = py::array_t<std::uint8_t, py::array::c_style>;

std::vector<PageBytes> export_pages(Engine& engine, const py::object& tokens, std::int32_t first, std::int32_t count,
                                    const std::string& context_key) {
  const std::vector<std::int32_t> ids = to_tokens(tokens, "tokens");
  std::vector<std::vector<std::uint8_t>> pages;
  {
    const GilRelease release;
    pages = engine.export_pages(context_key, ids, first, count);
  }
  std::vector<PageBytes> arrays;
  for (auto& page : pages) {
    auto owner = std::make_unique<std::vector<std::uint8_t>>(std::move(page));
    const std::uint8_t* data = owner->data();
    const auto size = static_cast<py::ssize_t>(owner->size());
    const py::capsule capsule(owner.release(), [](void* p) { delete static_cast<std::vector<std::uint8_t>*>(p); });
    arrays.emplace_back(size, data, capsule);
  }
  return arrays;
}

std::int32_t import_pages(Engine& engine, const py::object& tokens, std::int32_t first,
                          const std::vector<py::buffer>& pages, const std::string& context_key) {
  const std::vector<std::int32_t> ids = to_tokens(tokens, "tokens");
  std::vector<py::buffer_info> infos;
  std::vector<std::span<const std::uint8_t>> spans;
  for (const py::buffer& page : pages) {
    infos.push_back(page.request());
    const py::buffer_info& info = infos.back();
    if (info.ndim != 1 || info.itemsize != 1) throw ArgumentError("a page is no flat buffer of bytes");
    spans.emplace_back(static_cast<const std::uint8_t*>(info.ptr), static_cast<std::size_t>(info.size));
  }
  const GilRelease release;
  return engine.import_pages(context_key, ids, first, spans);
}

void bind_results(py::module_& m) {
  py::class_<Timings>(m, "Timings")
      .def_readonly("queue_seconds", &Timings::queue_seconds)
      .def_readonly("prefill_seconds", &Timings::prefill_seconds)
      .def_readonly("decode_seconds", &Timings::decode_seconds)
      .def_readonly("prompt_tokens", &Timings::prompt_tokens)
      .def_readonly("cached_tokens", &Timings::cached_tokens)
      .def_readonly("generated_tokens", &Timings::generated_tokens)
      .def_readonly("draft_tokens", &Timings::draft_tokens)
      .def_readonly("accepted_tokens", &Timings::accepted_tokens);

  py::class_<Event>(m, "Event")
      .def_property_readonly("token",
                             [](const Event& e) { return e.sampled ? std::optional(e.sampled->token) : std::nullopt; })
      .def_readonly("text", &Event::text)
      .def_property_readonly("logprob", [](const Event& e) { return e.sampled ? e.sampled->logprob : std::nullopt; })
      .def_property_readonly("top_logprobs",
                             [](const Event& e) { return e.sampled ? top_logprobs_list(*e.sampled) : py::list(); })
      .def_property_readonly("finish_reason", &finish_reason)
      .def_property_readonly("stop", &stop_of);

  py::class_<Notifier, std::shared_ptr<Notifier>>(m, "Notifier")
      .def(py::init<>())
      .def("fileno", &Notifier::descriptor)
      .def("take", &Notifier::take);

  const auto unlocked = py::call_guard<GilRelease>();
  py::class_<RequestHandle>(m, "RequestHandle")
      .def("next", &next_event, "timeout"_a = py::none(),
           "The next event; None after `timeout` seconds, and after the final event. Raises the request's error.")
      .def("events", &all_events, "timeout"_a = py::none(),
           "Waits for the final event, then gives all events not yet taken. TimeoutError.")
      // These wait for nobody: the GIL stays, as giving it away could cost a turn of every other thread.
      .def("ready", &RequestHandle::ready)
      .def("notify", &RequestHandle::notify, "notifier"_a, "number"_a, "only_end"_a = false)
      .def("scores", &scores, "timeout"_a = py::none(),
           "Waits for the result of submit_score or submit_embed ([1, encoding_size]). TimeoutError.")
      .def("cancel", &RequestHandle::cancel, unlocked)
      .def_property_readonly("finished", &RequestHandle::finished)
      .def_property_readonly("timings", &RequestHandle::timings);

  py::class_<EngineStats>(m, "EngineStats")
      .def_readonly("running", &EngineStats::running)
      .def_readonly("waiting", &EngineStats::waiting)
      .def_readonly("pages_in_use", &EngineStats::pages_in_use)
      .def_readonly("page_limit", &EngineStats::page_limit)
      .def_readonly("runs", &EngineStats::runs)
      .def_readonly("tokens", &EngineStats::tokens)
      .def_readonly("preemptions", &EngineStats::preemptions)
      .def_readonly("pages_cached", &EngineStats::pages_cached)
      .def_readonly("requests", &EngineStats::requests)
      .def_readonly("prompt_tokens", &EngineStats::prompt_tokens)
      .def_readonly("cached_tokens", &EngineStats::cached_tokens)
      .def_readonly("generated_tokens", &EngineStats::generated_tokens)
      .def_readonly("draft_tokens", &EngineStats::draft_tokens)
      .def_readonly("accepted_tokens", &EngineStats::accepted_tokens);
}

}  // namespace

void bind_engine(py::module_& m) {
  bind_sampler(m);
  bind_text(m);
  bind_scheduler(m);
  bind_results(m);

  py::class_<PyPlan, Plan, std::shared_ptr<PyPlan>>(m, "PyPlan", "Base of plans written in Python (tests).")
      .def(py::init<>());

  py::class_<SequenceContext, std::shared_ptr<SequenceContext>>(
      m, "SequenceContext", "What beside its tokens a request is computed from; the same for all of one context_key.")
      .def(py::init(&make_context), py::kw_only(), "adapter"_a = -1, "adapter_scale"_a = 1.0f,
           "embeddings"_a = py::none(), "encoder_tokens"_a = py::tuple());

  const auto open_engines = std::make_shared<OpenEngines>();
  py::module_::import("atexit").attr("register")(py::cpp_function([open_engines] { open_engines->close_all(); }));

  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine")
      .def(py::init([open_engines](const py::object& plan, std::shared_ptr<Pieces> pieces, std::int32_t context,
                                   std::int32_t max_sequences, std::optional<std::int64_t> kv_tokens,
                                   std::int32_t max_waiting, const py::object& draft, const py::object& step_clock) {
             auto engine = make_engine(plan, std::move(pieces), context, max_sequences, kv_tokens, max_waiting, draft,
                                       step_clock);
             open_engines->add(engine);
             return engine;
           }),
           "plan"_a, "pieces"_a, py::kw_only(), "context"_a, "max_sequences"_a = 16, "kv_tokens"_a = py::none(),
           "max_waiting"_a = 1024, "draft"_a = py::none(), "step_clock"_a = py::none())
      .def_property_readonly("context", &Engine::context)
      .def_property_readonly("vocab_size", &Engine::vocab_size)
      .def_property_readonly("hidden_size", &Engine::hidden_size)
      .def_property_readonly("closed", &Engine::closed)
      .def("stats", &Engine::stats)
      .def_property_readonly("page_bytes", &Engine::page_bytes)
      .def_property_readonly("kv_layout", &Engine::kv_layout)
      .def(
          "cached_pages",
          [](const Engine& engine, const py::object& tokens, const std::string& context_key) {
            return engine.cached_pages(context_key, to_tokens(tokens, "tokens"));
          },
          "tokens"_a, py::kw_only(), "context_key"_a = py::bytes())
      .def("export_pages", &export_pages, "tokens"_a, "first"_a, "count"_a, py::kw_only(),
           "context_key"_a = py::bytes())
      .def("import_pages", &import_pages, "tokens"_a, "first"_a, "pages"_a, py::kw_only(),
           "context_key"_a = py::bytes())
      .def("submit", &submit, "tokens"_a, py::kw_only(), "max_tokens"_a = py::none(), "sampling"_a = py::none(),
           "choice"_a = 0, "stop_ids"_a = py::tuple(), "stop_strings"_a = std::vector<std::string>(),
           "top_logprobs"_a = py::none(), "mask"_a = py::none(), "special"_a = false, "drop_leading_space"_a = false,
           "draft_tokens"_a = py::none(), "shift_context"_a = false, "background"_a = false, "timeout"_a = py::none(),
           "context_key"_a = py::bytes(), "context"_a = py::none())
      .def("submit_score", &submit_score, "tokens"_a, py::kw_only(), "positions_from"_a = 0, "logits"_a = false,
           "hidden"_a = "", "background"_a = false, "timeout"_a = py::none(), "context_key"_a = py::bytes(),
           "context"_a = py::none())
      .def("submit_embed", &submit_embed, "tokens"_a, py::kw_only(), "background"_a = false, "timeout"_a = py::none(),
           "context_key"_a = py::bytes())
      .def_property_readonly("encoding_size", [](const Engine& engine) { return engine.encoding().size; })
      .def_property_readonly("max_encoded", &Engine::max_encoded)
      .def_property_readonly("needs_encoder_tokens", [](const Engine& engine) { return engine.encoding().keeps; })
      .def("close", &Engine::close, py::call_guard<GilRelease>());
}

}  // namespace sterna::bindings
