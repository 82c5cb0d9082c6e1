#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <new>
#include <string>
#include <system_error>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/float_mode.h"
#include "engine/engine_core.h"

namespace sterna {
namespace {

void check_options(const EngineOptions& options) {
  if (options.context < 2)
    throw ArgumentError("context is " + std::to_string(options.context) + "; it must be 2 or more");
  if (options.max_sequences < 1) {
    throw ArgumentError("max_sequences is " + std::to_string(options.max_sequences) + "; it must be 1 or more");
  }
  if (options.max_waiting < 1) {
    throw ArgumentError("max_waiting is " + std::to_string(options.max_waiting) + "; it must be 1 or more");
  }
  // Positions and page numbers are 32-bit.
  if (options.kv_tokens < 0 || options.kv_tokens > std::numeric_limits<std::int32_t>::max()) {
    throw ArgumentError("kv_tokens is " + std::to_string(options.kv_tokens) + "; it must be below 2^31");
  }
}

void check_tokens(const std::vector<std::int32_t>& tokens, std::int32_t vocab_size) {
  if (tokens.empty()) throw ArgumentError("there are no tokens");
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size) {
      throw ArgumentError("token " + std::to_string(tokens[i]) + " at position " + std::to_string(i) +
                          " is not in the vocabulary of " + std::to_string(vocab_size));
    }
  }
}

/// The rows of `context` that are no tokens go in front of them, as the ids -1, -2, ...
void prepend_embeddings(std::vector<std::int32_t>& tokens, const SequenceContext* context, std::int32_t hidden_size) {
  if (context == nullptr || context->embeddings.empty()) return;
  const std::size_t floats = context->embeddings.size();
  const auto width = static_cast<std::size_t>(hidden_size);
  if (width == 0) throw ArgumentError("this model takes no embeddings");
  if (floats % width != 0) {
    throw ArgumentError("embeddings have " + std::to_string(floats) + " numbers, no rows of " + std::to_string(width));
  }
  std::vector<std::int32_t> ids(floats / width);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = -1 - static_cast<std::int32_t>(i);
  tokens.insert(tokens.begin(), ids.begin(), ids.end());
}

/// What a request's terms ask for is there, and its tokens are those of the model; embeddings come in front of them.
void check_prompt(const EngineCore& core, std::vector<std::int32_t>& tokens, const SequenceContext* context) {
  core.check_has_logits();
  check_tokens(tokens, core.vocab_size());
  core.check_adapter(context);
  core.check_encoder_input(context);
  if (context && !context->encoder_tokens.empty()) check_tokens(context->encoder_tokens, core.vocab_size());
  prepend_embeddings(tokens, context, core.hidden_size());
}

/// The text that is encoded before a request runs, or null.
std::unique_ptr<Sequence> encoder_input(const SequenceContext* context) {
  if (context == nullptr || context->encoder_tokens.empty()) return nullptr;
  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = context->encoder_tokens;
  sequence->output_from = sequence->num_tokens() - 1;
  return sequence;
}

std::string too_long(std::size_t num_tokens, std::int32_t context) {
  return "the prompt has " + std::to_string(num_tokens) + " tokens; the context holds " + std::to_string(context);
}

void check_page_range(std::int32_t first, std::int32_t count) {
  if (first >= 0 && count >= 0) return;
  throw ArgumentError("pages from " + std::to_string(first) + ", " + std::to_string(count) +
                      " of them; neither may be negative");
}

std::shared_ptr<float[]> allocate_scores(std::size_t rows, std::size_t columns) {
  const auto size = checked_mul(rows, std::max<std::size_t>(columns, 1));
  const auto bytes = size ? checked_mul(*size, sizeof(float)) : std::nullopt;
  if (bytes) {
    if (float* data = new (std::nothrow) float[*size]) return std::shared_ptr<float[]>(data);
  }
  throw MemoryBudgetError("no memory for the logits of " + std::to_string(rows) + " positions");
}

}  // namespace

RequestHandle::RequestHandle(std::shared_ptr<EngineCore> core, std::shared_ptr<ActiveRequest> request)
    : core_(std::move(core)), request_(std::move(request)) {}

RequestHandle::~RequestHandle() {
  if (core_->in_own_process() && !request_->results.finished()) core_->cancel(*request_);
}

std::optional<Event> RequestHandle::next(std::chrono::milliseconds timeout) {
  core_->check_process();
  return request_->results.next(timeout);
}

std::vector<Event> RequestHandle::ready() {
  core_->check_process();
  return request_->results.ready();
}

void RequestHandle::notify(std::shared_ptr<Notifier> notifier, std::uint64_t number, bool only_end) {
  core_->check_process();
  request_->results.notify(std::move(notifier), number, only_end);
}

bool RequestHandle::wait_finished(std::chrono::milliseconds timeout) {
  core_->check_process();
  return request_->results.wait_finished(timeout);
}

bool RequestHandle::exhausted() const {
  core_->check_process();
  return request_->results.exhausted();
}

bool RequestHandle::finished() const {
  core_->check_process();
  return request_->results.finished();
}

Timings RequestHandle::timings() const {
  core_->check_process();
  return request_->results.timings();
}

void RequestHandle::cancel() {
  core_->check_process();
  core_->cancel(*request_);
}

RequestHandle::Scores RequestHandle::scores() const {
  core_->check_process();
  if (request_->generate()) throw ArgumentError("the request asks for no scores");
  if (request_->results.finish_reason() != FinishReason::kLength) throw Error("the request was cancelled");
  return {request_->scores, request_->score_rows, request_->score_columns};
}

Engine::Engine(std::shared_ptr<Plan> plan, std::shared_ptr<const Pieces> pieces, EngineOptions options,
               std::shared_ptr<Plan> draft_plan) {
  if (!plan || !pieces) throw ArgumentError("an engine needs a plan and pieces");
  check_options(options);
  core_ = std::make_shared<EngineCore>(std::move(plan), std::move(pieces), options, std::move(draft_plan));
  try {
    thread_ = std::make_unique<std::thread>([core = core_] {
      const FloatMode mode;  // a new thread inherits that of the caller
      core->loop();
    });
  } catch (const std::system_error& e) {
    throw Error(std::string("no thread for the engine: ") + e.what());
  }
}

Engine::~Engine() { close(); }

void Engine::close() {
  if (!core_->in_own_process()) {
    // The thread exists only in the parent; a std::thread that still counts as running must not be destroyed.
    [[maybe_unused]] std::thread* abandoned = thread_.release();
    return;
  }
  core_->ask_to_close();
  const std::lock_guard lock(close_mutex_);
  if (!thread_) return;
  if (thread_->get_id() == std::this_thread::get_id()) {
    // A mask that let go of the engine: the thread cannot wait for itself. It keeps the core alive until it ends.
    thread_->detach();
  } else {
    thread_->join();
    core_->free_plans();
  }
  thread_.reset();
}

bool Engine::closed() const { return core_->closed(); }

EngineStats Engine::stats() const {
  core_->check_process();
  return core_->stats();
}

std::uint64_t Engine::page_bytes() const { return core_->page_bytes(); }
std::string Engine::kv_layout() const { return core_->kv_layout(); }

std::int32_t Engine::cached_pages(const std::string& context_key, const std::vector<std::int32_t>& tokens) const {
  core_->check_process();
  return core_->cached_pages(context_key, tokens);
}

std::vector<std::vector<std::uint8_t>> Engine::export_pages(const std::string& context_key,
                                                            const std::vector<std::int32_t>& tokens, std::int32_t first,
                                                            std::int32_t count) {
  core_->check_process();
  check_page_range(first, count);
  return core_->export_pages(context_key, tokens, first, count);
}

std::int32_t Engine::import_pages(const std::string& context_key, const std::vector<std::int32_t>& tokens,
                                  std::int32_t first, const std::vector<std::span<const std::uint8_t>>& pages) {
  core_->check_process();
  check_tokens(tokens, vocab_size());
  check_page_range(first, 0);
  return core_->import_pages(context_key, tokens, first, pages);
}

std::int32_t Engine::context() const { return core_->context(); }
std::int32_t Engine::vocab_size() const { return core_->vocab_size(); }
std::int32_t Engine::hidden_size() const { return core_->hidden_size(); }
const EncodingInfo& Engine::encoding() const { return core_->encoding(); }
std::int32_t Engine::max_encoded() const { return core_->max_encoded(); }

std::unique_ptr<RequestHandle> Engine::submit(std::shared_ptr<ActiveRequest> request, const RequestTerms& terms) {
  if (terms.timeout_seconds) {
    const double timeout = *terms.timeout_seconds;
    if (!(timeout > 0)) {
      throw ArgumentError("timeout is " + std::to_string(timeout) + "; it must be a number of seconds above 0");
    }
    constexpr double kForever = 1e9;  // what a clock can count
    if (timeout < kForever) {
      const std::chrono::duration<double> wait(timeout);
      request->deadline = request->submitted + std::chrono::duration_cast<ActiveRequest::Clock::duration>(wait);
    }
  }
  auto handle = std::make_unique<RequestHandle>(core_, request);
  core_->submit(std::move(request));
  return handle;
}

std::unique_ptr<RequestHandle> Engine::submit(GenerateRequest request) {
  core_->check_process();
  check_prompt(*core_, request.tokens, request.terms.context.get());
  validate(request.sampling, vocab_size());
  if (request.max_tokens && *request.max_tokens < 0) {
    throw ArgumentError("max_tokens is " + std::to_string(*request.max_tokens) + "; it must not be negative");
  }
  if (request.top_logprobs < -1 || request.top_logprobs > vocab_size()) {
    throw ArgumentError("top_logprobs is " + std::to_string(request.top_logprobs) + "; it must be from 0 to " +
                        std::to_string(vocab_size()));
  }
  const std::size_t num_tokens = request.tokens.size();
  const auto room = static_cast<std::size_t>(context()) - (request.max_tokens == 0 ? 0 : 1);
  if (num_tokens > room) {
    throw ContextOverflowError(too_long(num_tokens, context()) + ", and at least one more token must fit");
  }
  if (request.draft_tokens && *request.draft_tokens < 0) {
    throw ArgumentError("draft_tokens is " + std::to_string(*request.draft_tokens) + "; it must not be negative");
  }
  auto active = std::make_shared<ActiveRequest>(std::move(request));
  const GenerateRequest& generate = *active->generate();
  active->num_prompt = static_cast<std::int32_t>(num_tokens);
  active->max_total = generate.max_tokens ? std::int64_t{active->num_prompt} + *generate.max_tokens
                                          : std::numeric_limits<std::int64_t>::max();
  active->encoder_input = encoder_input(generate.terms.context.get());
  return submit(active, generate.terms);
}

std::unique_ptr<RequestHandle> Engine::submit(EmbedRequest request) {
  core_->check_process();
  if (encoding().size == 0) throw UnsupportedModelError("this model makes no vectors of texts");
  check_tokens(request.tokens, vocab_size());
  const std::size_t num_tokens = request.tokens.size();
  if (num_tokens > static_cast<std::size_t>(max_encoded())) {
    throw ContextOverflowError("the text has " + std::to_string(num_tokens) + " tokens; " +
                               std::to_string(max_encoded()) + " can be embedded at once");
  }
  auto active = std::make_shared<ActiveRequest>(std::move(request));
  active->num_prompt = static_cast<std::int32_t>(num_tokens);
  active->score_rows = 1;
  active->score_columns = static_cast<std::size_t>(encoding().size);
  active->scores = allocate_scores(active->score_rows, active->score_columns);
  return submit(active, active->embed()->terms);
}

std::unique_ptr<RequestHandle> Engine::submit(ScoreRequest request) {
  core_->check_process();
  check_prompt(*core_, request.tokens, request.terms.context.get());
  const std::size_t num_tokens = request.tokens.size();
  if (num_tokens > static_cast<std::size_t>(context())) throw ContextOverflowError(too_long(num_tokens, context()));
  const std::size_t rows_end = request.logits ? num_tokens : num_tokens - 1;
  if (request.positions_from < 0 || static_cast<std::size_t>(request.positions_from) >= rows_end) {
    throw ArgumentError("positions_from is " + std::to_string(request.positions_from) + "; of " +
                        std::to_string(num_tokens) + " tokens the rows end at " + std::to_string(rows_end));
  }
  auto active = std::make_shared<ActiveRequest>(std::move(request));
  const ScoreRequest& score = *active->score();
  active->num_prompt = static_cast<std::int32_t>(num_tokens);
  active->score_rows = rows_end - static_cast<std::size_t>(score.positions_from);
  const std::int32_t width = score.hidden.empty() ? vocab_size() : core_->value_size(score.hidden);
  active->score_columns = score.logits ? static_cast<std::size_t>(width) : 0;
  active->scores = allocate_scores(active->score_rows, active->score_columns);
  active->encoder_input = encoder_input(score.terms.context.get());
  return submit(active, score.terms);
}

}  // namespace sterna
