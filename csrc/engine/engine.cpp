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

std::string too_long(std::size_t num_tokens, std::int32_t context) {
  return "the prompt has " + std::to_string(num_tokens) + " tokens; the context holds " + std::to_string(context);
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
  if (!std::holds_alternative<ScoreRequest>(request_->request)) throw ArgumentError("the request asks for no scores");
  if (request_->results.finish_reason() != FinishReason::kLength) throw Error("the request was cancelled");
  return {request_->scores, request_->score_rows, request_->score_columns};
}

KvSequence::KvSequence(std::shared_ptr<EngineCore> core, std::shared_ptr<CachedSequence> sequence)
    : core_(std::move(core)), sequence_(std::move(sequence)) {}

KvSequence::~KvSequence() {
  if (core_->in_own_process()) core_->drop(*sequence_);
}

std::vector<std::int32_t> KvSequence::tokens() const {
  core_->check_process();
  const auto lock = core_->lock();
  return sequence_->tokens;
}

std::int32_t KvSequence::num_tokens() const {
  core_->check_process();
  const auto lock = core_->lock();
  return sequence_->num_tokens();
}

std::int32_t KvSequence::num_cached() const {
  core_->check_process();
  const auto lock = core_->lock();
  return sequence_->num_computed;
}

std::unique_ptr<KvSequence> KvSequence::fork() const {
  core_->check_process();
  return std::make_unique<KvSequence>(core_, core_->fork(*sequence_));
}

void KvSequence::clear() {
  core_->check_process();
  core_->clear(*sequence_);
}

Engine::Engine(std::shared_ptr<Plan> plan, std::shared_ptr<const Pieces> pieces, EngineOptions options) {
  if (!plan || !pieces) throw ArgumentError("an engine needs a plan and pieces");
  check_options(options);
  core_ = std::make_shared<EngineCore>(std::move(plan), std::move(pieces), options);
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
    core_->free_plan();
  }
  thread_.reset();
}

bool Engine::closed() const { return core_->closed(); }

EngineStats Engine::stats() const {
  core_->check_process();
  return core_->stats();
}

std::int32_t Engine::context() const { return core_->context(); }
std::int32_t Engine::vocab_size() const { return core_->vocab_size(); }

std::unique_ptr<KvSequence> Engine::sequence() {
  core_->check_process();
  auto sequence = std::make_shared<CachedSequence>();
  sequence->kept = true;
  return std::make_unique<KvSequence>(core_, std::move(sequence));
}

std::unique_ptr<RequestHandle> Engine::submit(std::shared_ptr<ActiveRequest> request, const KvSequence* sequence) {
  if (sequence && sequence->core_ != core_) throw ArgumentError("the sequence belongs to another engine");
  request->sequence = sequence ? sequence->sequence_ : std::make_shared<CachedSequence>();
  auto handle = std::make_unique<RequestHandle>(core_, request);
  core_->submit(std::move(request));
  return handle;
}

std::unique_ptr<RequestHandle> Engine::submit(GenerateRequest request, const KvSequence* sequence) {
  core_->check_process();
  check_tokens(request.tokens, vocab_size());
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
  const auto num_prompt = static_cast<std::int32_t>(num_tokens);
  const std::int64_t wanted = request.max_tokens ? std::int64_t{num_prompt} + *request.max_tokens : context();
  auto active = std::make_shared<ActiveRequest>(std::move(request));
  active->num_prompt = num_prompt;
  active->max_total = static_cast<std::int32_t>(std::min<std::int64_t>(wanted, context()));
  return submit(std::move(active), sequence);
}

std::unique_ptr<RequestHandle> Engine::submit(ScoreRequest request, const KvSequence* sequence) {
  core_->check_process();
  check_tokens(request.tokens, vocab_size());
  const std::size_t num_tokens = request.tokens.size();
  if (num_tokens > static_cast<std::size_t>(context())) throw ContextOverflowError(too_long(num_tokens, context()));
  const std::size_t rows_end = request.logits ? num_tokens : num_tokens - 1;
  if (request.positions_from < 0 || static_cast<std::size_t>(request.positions_from) >= rows_end) {
    throw ArgumentError("positions_from is " + std::to_string(request.positions_from) + "; of " +
                        std::to_string(num_tokens) + " tokens the rows end at " + std::to_string(rows_end));
  }
  auto active = std::make_shared<ActiveRequest>(std::move(request));
  const auto& score = std::get<ScoreRequest>(active->request);
  active->max_total = static_cast<std::int32_t>(num_tokens);
  active->num_prompt = active->max_total;
  active->score_rows = rows_end - static_cast<std::size_t>(score.positions_from);
  active->score_columns = score.logits ? static_cast<std::size_t>(vocab_size()) : 0;
  active->scores = allocate_scores(active->score_rows, active->score_columns);
  return submit(std::move(active), sequence);
}

}  // namespace sterna
