#include "engine/engine_core.h"

#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/softmax.h"

namespace sterna {
namespace {

using Clock = ActiveRequest::Clock;

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

const std::vector<std::int32_t>& tokens_of(const ActiveRequest& request) {
  return std::visit([](const auto& r) -> const std::vector<std::int32_t>& { return r.tokens; }, request.request);
}

}  // namespace

ActiveRequest::ActiveRequest(GenerateRequest r)
    : request(std::move(r)),
      text(std::get<GenerateRequest>(request).stop_strings, std::get<GenerateRequest>(request).drop_leading_space) {}

EngineCore::EngineCore(std::shared_ptr<Plan> plan, std::shared_ptr<const Pieces> pieces, EngineOptions options)
    : options_(options),
      vocab_size_(plan->vocab_size()),
      process_(getpid()),
      plan_(std::move(plan)),
      pieces_(std::move(pieces)),
      sampler_(vocab_size_),
      pages_(pages_for(options.kv_tokens > 0 ? options.kv_tokens : options.context)),
      scheduler_({plan_->max_tokens(), plan_->max_outputs(), options.max_sequences}, pages_) {}

EngineCore::~EngineCore() {
  // In a forked child the plan's worker threads do not exist: waiting for them would hang, so the plan is left alone.
  if (!in_own_process()) new std::shared_ptr<Plan>(std::move(plan_));
}

bool EngineCore::in_own_process() const { return getpid() == process_; }

void EngineCore::check_process() const {
  if (in_own_process()) return;
  throw Error("this model was loaded in process " + std::to_string(process_) +
              " and cannot be used after fork(); load it again in the child, or start processes with \"spawn\"");
}

bool EngineCore::closed() const {
  const std::lock_guard lock(mutex_);
  return closing_;
}

EngineStats EngineCore::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats;
  stats.running = scheduler_.num_running();
  stats.waiting = scheduler_.num_waiting() + submitted_.size();
  stats.pages_in_use = pages_.num_in_use();
  stats.page_limit = pages_.limit();
  stats.runs = num_runs_;
  stats.tokens = num_rows_;
  stats.preemptions = scheduler_.num_preemptions();
  return stats;
}

void EngineCore::submit(std::shared_ptr<ActiveRequest> request) {
  const std::lock_guard lock(mutex_);
  if (closing_) throw Error("the engine is closed");
  const auto num_tokens = static_cast<std::int64_t>(tokens_of(*request).size());
  const std::int64_t pool = std::int64_t{pages_.limit()} * kPageSlots;
  if (num_tokens > pool) {
    throw MemoryBudgetError("the prompt has " + std::to_string(num_tokens) + " tokens; the KV cache holds " +
                            std::to_string(pool));
  }
  request->max_total = static_cast<std::int32_t>(std::min<std::int64_t>(request->max_total, pool));
  submitted_.push_back(std::move(request));
  work_ = true;
  wake_.notify_one();
}

void EngineCore::cancel(ActiveRequest& request) {
  const std::lock_guard lock(mutex_);
  request.cancelled = true;
  if (request.in_prefill) run_cancel_ = true;
  work_ = true;
  wake_.notify_one();
}

void EngineCore::drop(CachedSequence& sequence) {
  const std::lock_guard lock(mutex_);
  sequence.kept = false;
  if (!sequence.user) scheduler_.remove(sequence);
}

std::shared_ptr<CachedSequence> EngineCore::fork(const CachedSequence& sequence) {
  auto copy = std::make_shared<CachedSequence>();
  const std::lock_guard lock(mutex_);
  static_cast<Sequence&>(*copy) = fork_sequence(sequence, pages_);
  copy->kept = true;
  scheduler_.adopt(*copy);
  return copy;
}

void EngineCore::clear(CachedSequence& sequence) {
  const std::lock_guard lock(mutex_);
  if (sequence.user) throw Error("the sequence is in use by a request");
  scheduler_.remove(sequence);
  sequence.tokens.clear();
}

void EngineCore::ask_to_close() {
  const std::lock_guard lock(mutex_);
  closing_ = true;
  run_cancel_ = true;
  wake_.notify_one();
}

void EngineCore::free_plan() {
  std::shared_ptr<Plan> plan;
  const std::lock_guard lock(mutex_);
  plan.swap(plan_);
}

void EngineCore::loop() {
  while (true) {
    try {
      if (!turn()) break;
    } catch (...) {
      fail_all(std::current_exception());
    }
  }
  fail_all(std::make_exception_ptr(Error("the engine was closed")));
}

/// One batch, or a wait for work; false when the engine closes.
bool EngineCore::turn() {
  std::exception_ptr error;  // outlives the lock, as do the retired requests: see there
  std::vector<std::shared_ptr<ActiveRequest>> retired;
  std::unique_lock lock(mutex_);
  if (!retired_.empty()) {
    retired.swap(retired_);
    lock.unlock();
    retired.clear();
    lock.lock();
  }
  if (closing_) return false;
  work_ = false;
  take_requests();
  scheduler_.pick();
  if (Sequence* stuck = scheduler_.stuck()) {
    ActiveRequest& request = *static_cast<CachedSequence*>(stuck)->user;
    const std::string message = "the KV cache has " + std::to_string(pages_.limit()) + " pages of " +
                                std::to_string(kPageSlots) + " tokens: too few for a sequence of " +
                                std::to_string(stuck->num_tokens());
    end(request, FinishReason::kError, std::make_exception_ptr(MemoryBudgetError(message)));
    return true;
  }
  if (scheduler_.picked().empty()) {
    wake_.wait(lock, [&] { return work_ || closing_; });
    return true;
  }
  build_batch();
  run_cancel_ = false;
  const std::int32_t num_pages = std::min(pages_.high_water(), pages_.limit());
  lock.unlock();

  RunResult result = RunResult::kCancelled;
  std::int32_t room = 0;
  try {
    result = run_batch(num_pages);
    if (result == RunResult::kDone) read_outputs();
    if (result == RunResult::kNoMemory) room = plan_->num_pages();
  } catch (...) {
    error = std::current_exception();
  }

  lock.lock();
  for (const ScheduledRows& rows : scheduler_.picked()) {
    static_cast<CachedSequence*>(rows.sequence)->user->in_prefill = false;
  }
  if (error) {
    std::vector<ActiveRequest*> affected;
    for (const ScheduledRows& rows : scheduler_.picked()) {
      affected.push_back(static_cast<CachedSequence*>(rows.sequence)->user);
    }
    scheduler_.abandon();
    for (ActiveRequest* request : affected) end(*request, FinishReason::kError, error);
    return true;
  }
  if (result != RunResult::kDone) {
    if (result == RunResult::kNoMemory) pages_.set_limit(room);
    scheduler_.abandon();
    return true;
  }
  ++num_runs_;
  num_rows_ += batch_tokens_.size();
  scheduler_.advance();
  for (const Outcome& outcome : outcomes_) apply(outcome);
  return true;
}

/// Ends what was cancelled, and hands to the scheduler what may start.
void EngineCore::take_requests() {
  for (auto at = active_.begin(); at != active_.end();) {
    ActiveRequest& request = **at++;
    if (request.cancelled) end(request, FinishReason::kCancelled);
  }
  for (auto at = submitted_.begin(); at != submitted_.end();) {
    const std::shared_ptr<ActiveRequest> request = *at;
    if (request->cancelled) {
      Event last;
      last.finish = FinishReason::kCancelled;
      request->timings.queue_seconds = seconds(request->submitted, Clock::now());
      request->results.finish(std::move(last), request->timings, nullptr);
      retired_.push_back(request);
    } else if (request->sequence->user) {
      ++at;
      continue;
    } else {
      active_.push_back(request);
      start(request);
    }
    at = submitted_.erase(at);
  }
}

void EngineCore::start(const std::shared_ptr<ActiveRequest>& request) {
  CachedSequence& sequence = *request->sequence;
  const std::vector<std::int32_t>& tokens = tokens_of(*request);
  const auto num_tokens = static_cast<std::int32_t>(tokens.size());
  sequence.user = request.get();

  std::int32_t reusable = common_prefix(sequence.tokens, tokens);
  sequence.tokens = tokens;
  if (const auto* score = std::get_if<ScoreRequest>(&request->request)) {
    if (!score->logits) sequence.tokens.pop_back();  // what follows the last token is nobody's question
    sequence.output_from = score->positions_from;
    reusable = std::min(reusable, score->positions_from);
  } else if (std::get<GenerateRequest>(request->request).max_tokens == 0) {
    sequence.output_from = num_tokens;
  } else {
    sequence.output_from = num_tokens - 1;
    reusable = std::min(reusable, num_tokens - 1);
  }
  truncate_cache(sequence, reusable, pages_);
  request->timings.prompt_tokens = num_tokens;
  request->timings.cached_tokens = sequence.num_computed;
  if (sequence.num_pending() == 0) return end(*request, FinishReason::kLength);
  scheduler_.add(sequence);
}

void EngineCore::build_batch() {
  batch_tokens_.clear();
  batch_positions_.clear();
  batch_sequences_.clear();
  batch_page_tables_.clear();
  batch_output_rows_.clear();
  const auto now = Clock::now();
  for (const ScheduledRows& rows : scheduler_.picked()) {
    auto& sequence = static_cast<CachedSequence&>(*rows.sequence);
    for (std::int32_t i = 0; i < rows.count; ++i) {
      if (i >= rows.count - rows.num_outputs) {
        batch_output_rows_.push_back(static_cast<std::int32_t>(batch_tokens_.size()));
      }
      batch_tokens_.push_back(sequence.tokens[static_cast<std::size_t>(rows.first + i)]);
      batch_positions_.push_back(rows.first + i);
      batch_sequences_.push_back(static_cast<std::int32_t>(batch_page_tables_.size()));
    }
    batch_page_tables_.emplace_back(sequence.pages);
    sequence.user->in_prefill = rows.count > 1;
    if (!sequence.user->started) sequence.user->started = now;
  }
}

EngineCore::RunResult EngineCore::run_batch(std::int32_t num_pages) {
  if (plan_->num_pages() < num_pages) {
    try {
      plan_->reserve_pages(num_pages);
    } catch (const MemoryBudgetError&) {
      return RunResult::kNoMemory;
    }
  }
  const Batch batch{batch_tokens_, batch_positions_, batch_sequences_, batch_page_tables_, batch_output_rows_};
  return plan_->run(batch, &run_cancel_) ? RunResult::kDone : RunResult::kCancelled;
}

std::span<const float> EngineCore::logits_row(std::size_t row) const {
  const auto width = static_cast<std::size_t>(vocab_size_);
  return plan_->logits().subspan(row * width, width);
}

/// Samples and scores; nothing here changes a sequence.
void EngineCore::read_outputs() {
  outcomes_.clear();
  std::size_t output = 0;
  for (const ScheduledRows& rows : scheduler_.picked()) {
    auto& sequence = static_cast<CachedSequence&>(*rows.sequence);
    ActiveRequest& request = *sequence.user;
    Outcome outcome{&request, std::nullopt, nullptr};
    try {
      if (const auto* score = std::get_if<ScoreRequest>(&request.request)) {
        read_scores(request, *score, rows, output);
      } else if (rows.num_outputs > 0) {
        const auto& generate = std::get<GenerateRequest>(request.request);
        SamplingContext context;
        context.history = sequence.tokens;
        context.num_prompt = static_cast<std::size_t>(request.num_prompt);
        context.choice = generate.choice;
        context.top_logprobs = generate.top_logprobs;
        context.mask = &generate.mask;
        const std::size_t last = output + static_cast<std::size_t>(rows.num_outputs) - 1;
        outcome.sampled = sampler_.sample(generate.sampling, logits_row(last), context);
      }
    } catch (...) {
      outcome.error = std::current_exception();
    }
    outcomes_.push_back(std::move(outcome));
    output += static_cast<std::size_t>(rows.num_outputs);
  }
}

void EngineCore::read_scores(ActiveRequest& request, const ScoreRequest& score, const ScheduledRows& rows,
                             std::size_t first_output) {
  for (std::int32_t i = 0; i < rows.num_outputs; ++i) {
    const std::span<const float> logits = logits_row(first_output + static_cast<std::size_t>(i));
    const std::int32_t position = rows.first + rows.count - rows.num_outputs + i;
    const auto row = static_cast<std::size_t>(position - score.positions_from);
    if (score.logits) {
      std::copy(logits.begin(), logits.end(), request.scores.get() + row * request.score_columns);
      continue;
    }
    const RowExtent extent = row_extent(logits);
    if (!extent.finite) {
      throw NumericError("the logits after position " + std::to_string(position) + " are not all finite");
    }
    const std::int32_t next = score.tokens[static_cast<std::size_t>(position) + 1];
    const auto logit = static_cast<double>(logits[static_cast<std::size_t>(next)]);
    request.scores[row] = static_cast<float>(logit - log_sum_exp(logits, extent.max));
  }
}

void EngineCore::apply(const Outcome& outcome) {
  ActiveRequest& request = *outcome.request;
  if (outcome.error) return end(request, FinishReason::kError, outcome.error);
  const bool complete = request.sequence->num_pending() == 0;
  if (outcome.sampled) {
    apply_token(request, std::get<GenerateRequest>(request.request), *outcome.sampled);
  } else if (complete) {
    end(request, FinishReason::kLength);
  }
}

void EngineCore::apply_token(ActiveRequest& request, const GenerateRequest& generate, Sampled sampled) {
  if (!request.first_output) request.first_output = Clock::now();
  const std::int32_t token = sampled.token;
  if (std::find(generate.stop_ids.begin(), generate.stop_ids.end(), token) != generate.stop_ids.end()) {
    return end(request, FinishReason::kStop, nullptr, token);
  }
  CachedSequence& sequence = *request.sequence;
  sequence.tokens.push_back(token);
  sequence.output_from = sequence.num_tokens() - 1;
  ++request.timings.generated_tokens;
  Event event;
  event.sampled = std::move(sampled);
  event.text = request.text.push(pieces_->piece(token, generate.special));
  request.results.push(std::move(event));
  if (const std::string* stop = request.text.stopped()) {
    end(request, FinishReason::kStop, nullptr, *stop);
  } else if (sequence.num_tokens() >= request.max_total) {
    end(request, FinishReason::kLength);
  }
}

/// The final event; the sequence leaves the scheduler, its pages stay only with a KvSequence that can use them.
void EngineCore::end(ActiveRequest& request, FinishReason reason, std::exception_ptr error, StopCause stop) {
  CachedSequence& sequence = *request.sequence;
  sequence.user = nullptr;
  if (sequence.kept && !error) {
    scheduler_.park(sequence);
  } else {
    scheduler_.remove(sequence);
  }
  const auto now = Clock::now();
  const auto started = request.started.value_or(now);
  const auto first_output = request.first_output.value_or(now);
  request.timings.queue_seconds = seconds(request.submitted, started);
  request.timings.prefill_seconds = seconds(started, first_output);
  request.timings.decode_seconds = seconds(first_output, now);
  Event last;
  last.finish = reason;
  last.text = request.text.finish();
  last.stop = std::move(stop);
  if (reason == FinishReason::kLength && request.text.stopped()) {  // U+FFFD for an unfinished character completed it
    last.finish = FinishReason::kStop;
    last.stop = StopCause(*request.text.stopped());
  }
  const auto at = std::find_if(active_.begin(), active_.end(), [&](const auto& r) { return r.get() == &request; });
  retired_.push_back(std::move(*at));
  active_.erase(at);
  work_ = true;  // someone may have waited for the sequence or its pages
  request.results.finish(std::move(last), request.timings, std::move(error));
}

void EngineCore::fail_all(const std::exception_ptr& error) {
  const std::lock_guard lock(mutex_);
  scheduler_.abandon();
  while (!active_.empty()) end(*active_.front(), FinishReason::kError, error);
  for (const auto& request : submitted_) {
    Event last;
    last.finish = FinishReason::kError;
    request->results.finish(std::move(last), request->timings, error);
    retired_.push_back(request);
  }
  submitted_.clear();
}

}  // namespace sterna
