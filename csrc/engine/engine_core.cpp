#include "engine/engine_core.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace sterna {
namespace {

using Clock = ActiveRequest::Clock;

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// Ends the context keys of long sequences.
constexpr std::string_view kLongContext = "/longrope";

std::int64_t kv_tokens_of(const EngineOptions& options) {
  return options.kv_tokens > 0 ? options.kv_tokens : options.context;
}

/// The plan's pools of sequences, or of what is encoded for them.
std::vector<std::size_t> pools_of(const Plan& plan, bool encoded) {
  std::vector<std::size_t> numbers;
  for (std::size_t i = 0; i < plan.kv_pools().size(); ++i) {
    if ((plan.kv_pools()[i].kind != KvPoolKind::kSequence) == encoded) numbers.push_back(i);
  }
  return numbers;
}

/// What is said about these pools.
std::vector<std::int32_t> chosen(const std::vector<std::int32_t>& values, std::span<const std::size_t> pools) {
  std::vector<std::int32_t> result;
  for (const std::size_t pool : pools) result.push_back(values[pool]);
  return result;
}

std::uint64_t page_bytes_of(const Plan& plan, std::span<const std::size_t> pools) {
  std::uint64_t bytes = 0;
  for (const std::size_t pool : pools) bytes += plan.kv_pools()[pool].page_bytes;
  return bytes;
}

std::string deadline_message(const ActiveRequest& request, double timeout) {
  return "the request did not end within its timeout of " + std::to_string(timeout) + " s; " +
         std::to_string(request.timings.generated_tokens) + " tokens were generated";
}

}  // namespace

ActiveRequest::ActiveRequest(GenerateRequest r)
    : request(std::move(r)), text(generate()->stop_strings, generate()->drop_leading_space) {
  tokens = std::move(std::get<GenerateRequest>(request).tokens);
}

ActiveRequest::ActiveRequest(ScoreRequest r) : request(std::move(r)) { tokens = score()->tokens; }

ActiveRequest::ActiveRequest(EmbedRequest r) : request(std::move(r)) {
  tokens = std::move(std::get<EmbedRequest>(request).tokens);
}

EngineCore::EngineCore(std::shared_ptr<Plan> plan, std::shared_ptr<const Pieces> pieces, EngineOptions options,
                       std::shared_ptr<Plan> draft_plan)
    : options_(options),
      vocab_size_(plan->vocab_size()),
      hidden_size_(plan->hidden_size()),
      num_adapters_(plan->num_adapters()),
      has_logits_(plan->has_logits()),
      encoding_(plan->encoding()),
      max_rows_(plan->max_tokens()),
      longrope_context_(plan->longrope_context()),
      process_(getpid()),
      plan_(std::move(plan)),
      pieces_(std::move(pieces)),
      page_bytes_(page_bytes_of(*plan_, pools_of(*plan_, false))),
      kv_layout_(plan_->kv_layout()),
      sampler_(vocab_size_),
      sequence_pools_(pools_of(*plan_, false)),
      encoded_pools_(pools_of(*plan_, true)),
      cache_(chosen(pool_windows(*plan_), sequence_pools_),
             chosen(pool_page_limits(*plan_, kv_tokens_of(options), options.max_sequences), sequence_pools_)),
      encoded_(chosen(pool_windows(*plan_), encoded_pools_),
               chosen(pool_page_limits(*plan_, kv_tokens_of(options), options.max_sequences), encoded_pools_)),
      scheduler_({plan_->max_tokens(), plan_->max_outputs(), options.max_sequences}, cache_),
      batch_largest_(*plan_),
      drafter_(*plan_, std::move(draft_plan), kv_tokens_of(options), options.max_sequences, options.step_clock) {}

EngineCore::~EngineCore() {
  // In a forked child the plans' worker threads do not exist: waiting for them would hang, so the plans are left alone.
  if (in_own_process()) return;
  new std::shared_ptr<Plan>(std::move(plan_));
  new std::shared_ptr<Plan>(drafter_.take_plan());
}

bool EngineCore::in_own_process() const { return getpid() == process_; }

void EngineCore::check_process() const {
  if (in_own_process()) return;
  throw Error("this model was loaded in process " + std::to_string(process_) +
              " and cannot be used after fork(); load it again in the child, or start processes with \"spawn\"");
}

void EngineCore::check_adapter(const SequenceContext* context) const {
  if (context == nullptr || context->adapter == -1) return;
  if (context->adapter < 0 || context->adapter >= num_adapters_) {
    throw ArgumentError("adapter " + std::to_string(context->adapter) + "; the model has " +
                        std::to_string(num_adapters_));
  }
  if (!std::isfinite(context->adapter_scale)) throw ArgumentError("the scale of an adapter must be finite");
}

std::int32_t EngineCore::value_size(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const std::int32_t size = plan_ ? plan_->value_size(name) : 0;
  if (size == 0) throw ArgumentError("the model has no value \"" + name + "\"");
  return size;
}

bool EngineCore::closed() const { return closing_; }

EngineStats EngineCore::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = totals_;
  stats.running = scheduler_.num_running();
  stats.waiting = scheduler_.num_waiting() + submitted_.size() + encoding_line_.size();
  for (const KvCache* cache : {&cache_, &encoded_}) {
    for (std::size_t pool = 0; pool < cache->num_pools(); ++pool) {
      const KvPages& pages = cache->pages(pool);
      if (stats.page_limit > 0 && pages.num_in_use() <= stats.pages_in_use) continue;
      stats.pages_in_use = pages.num_in_use();
      stats.pages_cached = pages.num_idle();
      stats.page_limit = pages.limit();
    }
  }
  stats.preemptions = scheduler_.num_preemptions();
  return stats;
}

/// Positions of one sequence: those of the context, or of the whole pool where it is smaller. Windows need no room for
/// them all.
std::int64_t EngineCore::sequence_limit() const {
  std::int64_t limit = options_.context;
  for (std::size_t pool = 0; pool < cache_.num_pools(); ++pool) {
    if (cache_.window(pool) == 0) limit = std::min(limit, std::int64_t{cache_.pages(pool).limit()} * kPageSlots);
  }
  return limit;
}

void EngineCore::submit(std::shared_ptr<ActiveRequest> request) {
  const std::lock_guard lock(mutex_);
  if (closing_) throw Error("the engine is closed");
  const std::size_t waiting = scheduler_.num_waiting() + submitted_.size() + encoding_line_.size();
  if (waiting >= static_cast<std::size_t>(options_.max_waiting)) {
    throw QueueFullError(std::to_string(waiting) + " requests are waiting already, as many as may");
  }
  if (request->num_tokens() > sequence_limit()) {
    throw MemoryBudgetError("the prompt has " + std::to_string(request->num_tokens()) + " tokens; the KV cache holds " +
                            std::to_string(sequence_limit()));
  }
  request->max_positions = sequence_limit();
  submitted_.push_back(std::move(request));
  work_ = true;
  wake_.notify_one();
}

void EngineCore::cancel(ActiveRequest& request) {
  const std::lock_guard lock(mutex_);
  request.cancelled = true;
  if (request.in_prefill || drafting_) interrupt_.asked = true;
  work_ = true;
  wake_.notify_one();
}

void EngineCore::ask_to_close() {
  const std::lock_guard lock(mutex_);
  closing_ = true;
  interrupt_.asked = true;
  wake_.notify_one();
}

void EngineCore::free_plans() {
  std::shared_ptr<Plan> plan, draft_plan;
  const std::lock_guard lock(mutex_);
  plan.swap(plan_);
  draft_plan = drafter_.take_plan();
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
  make_drafts();
  std::unique_lock lock(mutex_);
  if (!retired_.empty()) {
    retired.swap(retired_);
    lock.unlock();
    retired.clear();
    lock.lock();
  }
  if (closing_) return false;
  work_ = false;
  if (run_jobs(lock)) return true;
  take_requests();
  encodes_ = pick_encodes();
  if (!encodes_) scheduler_.pick();
  if (Sequence* stuck = encodes_ ? nullptr : scheduler_.stuck()) {
    if (!encoding_line_.empty() && cache_.has_pages(*encoding_line_.front())) {
      encoded_last_ = false;  // those whose pages are missed go on, and give them back
      return true;
    }
    std::int32_t limit = cache_.pages(0).limit();
    for (std::size_t pool = 1; pool < cache_.num_pools(); ++pool) limit = std::min(limit, cache_.pages(pool).limit());
    const std::string message = "the KV cache has " + std::to_string(limit) + " pages of " +
                                std::to_string(kPageSlots) + " tokens: too few for a sequence of " +
                                std::to_string(stuck->num_tokens());
    end(static_cast<ActiveRequest&>(*stuck), FinishReason::kError, std::make_exception_ptr(MemoryBudgetError(message)));
    return true;
  }
  if (picked().empty()) {
    if (!encoding_line_.empty()) return true;
    wake_.wait(lock, [&] { return work_ || closing_; });
    return true;
  }
  build_batch();
  std::vector<std::int32_t> num_pages(sequence_pools_.size() + encoded_pools_.size());
  const auto count_pages = [&](const KvCache& cache, std::span<const std::size_t> pools) {
    for (std::size_t i = 0; i < pools.size(); ++i) {
      num_pages[pools[i]] = std::min(cache.pages(i).high_water(), cache.pages(i).limit());
    }
  };
  count_pages(cache_, sequence_pools_);
  count_pages(encoded_, encoded_pools_);
  lock.unlock();

  RunResult result = RunResult::kInterrupted;
  try {
    const double begin = drafter_.seconds_now();
    result = run_batch(num_pages);
    if (result == RunResult::kDone && encodes_) {
      read_encodings();
    } else if (result == RunResult::kDone) {
      read_outputs();
      if (only_decodes_) {
        drafter_.measured(static_cast<std::int32_t>(batch_tokens_.size()), drafter_.seconds_now() - begin);
      }
    }
  } catch (...) {
    error = std::current_exception();
  }

  lock.lock();
  if (encodes_) {
    finish_encodes(result, error);
  } else {
    finish_batch(result, error);
  }
  return true;
}

void EngineCore::finish_batch(RunResult result, const std::exception_ptr& error) {
  std::vector<ActiveRequest*> requests;
  for (const ScheduledRows& rows : scheduler_.picked()) {
    requests.push_back(static_cast<ActiveRequest*>(rows.sequence));
    requests.back()->in_prefill = false;
  }
  if (error) {
    scheduler_.abandon(copied_);
    for (ActiveRequest* request : requests) end(*request, FinishReason::kError, error);
    return;
  }
  if (result != RunResult::kDone) {
    if (result == RunResult::kNoMemory) lower_page_limits();
    scheduler_.abandon(copied_);
    return;
  }
  ++totals_.runs;
  totals_.tokens += batch_tokens_.size();
  std::vector<std::int32_t> counts;
  for (std::size_t i = 0; i < outcomes_.size(); ++i) {
    const ScheduledRows& rows = scheduler_.picked()[i];
    const std::int32_t own = std::min(rows.count, outcomes_[i].request->num_tokens() - rows.first);
    counts.push_back(own);
  }
  scheduler_.advance(counts);
  for (const Outcome& outcome : outcomes_) apply(outcome);
}

/// What the plan has is all that there will be.
void EngineCore::lower_page_limits() {
  const auto lower = [&](KvCache& cache, std::span<const std::size_t> pools) {
    for (std::size_t i = 0; i < pools.size(); ++i) {
      cache.pages(i).set_limit(std::min(cache.pages(i).limit(), plan_->num_pages(pools[i])));
    }
  };
  lower(cache_, sequence_pools_);
  lower(encoded_, encoded_pools_);
}

/// Ends what was cancelled or is late, and hands to the scheduler what is new.
void EngineCore::take_requests() {
  const auto now = Clock::now();
  const auto late = [&](const ActiveRequest& request) {
    if (now < request.deadline) return std::exception_ptr();
    return std::make_exception_ptr(DeadlineError(deadline_message(request, *request.terms().timeout_seconds)));
  };
  for (auto at = active_.begin(); at != active_.end();) {
    ActiveRequest& request = **at++;
    if (request.cancelled) {
      end(request, FinishReason::kCancelled);
    } else if (const std::exception_ptr error = late(request)) {
      end(request, FinishReason::kError, error);
    }
  }
  while (!submitted_.empty()) {
    const std::shared_ptr<ActiveRequest> request = std::move(submitted_.front());
    submitted_.pop_front();
    if (request->cancelled) {
      end_unstarted(request, FinishReason::kCancelled, nullptr);
    } else if (const std::exception_ptr error = late(*request)) {
      end_unstarted(request, FinishReason::kError, error);
    } else {
      active_.push_back(request);
      start(*request);
    }
  }
}

void EngineCore::start(ActiveRequest& request) {
  const auto num_tokens = request.num_tokens();
  request.priority = request.terms().priority;
  request.context_key = request.terms().context_key;
  request.timings.prompt_tokens = num_tokens;
  if (request.embed()) {
    request.output_from = num_tokens - 1;
    return add_to_encode(request);
  }
  if (const ScoreRequest* score = request.score()) {
    if (!score->logits) request.tokens.pop_back();  // what follows the last token is nobody's question
    request.output_from = score->positions_from;
  } else {
    request.output_from = request.generate()->max_tokens == 0 ? num_tokens : num_tokens - 1;
  }
  // Whether it is long is settled for all that it may become, since its pages cannot change over.
  const std::int64_t most = request.score() ? num_tokens : std::min(request.max_total, request.max_positions);
  if (longrope_context_ > 0 && most > longrope_context_) {
    request.is_long = true;
    request.context_key += kLongContext;
  }
  if (request.encoder_input) {
    request.timings.prompt_tokens = request.encoder_input->num_tokens();
    return add_to_encode(request);
  }
  scheduler_.add(request);
}

/// Guesses for the sequences that decode, as long as they pay. No lock meanwhile: tokens are the engine thread's alone.
void EngineCore::make_drafts() {
  if (cache_.has_state()) return;
  std::vector<DraftJob> jobs;
  std::int32_t rows = 0;
  auto deadline = Clock::time_point::max();
  for (const auto& request : active_) {
    request->draft.clear();
    if (request->state == Sequence::State::kWaiting) drafter_.release(request->drafting, request->tokens);
    if (request->state != Sequence::State::kRunning || request->num_pending() != 1) continue;
    ++rows;
    const GenerateRequest* generate = request->generate();
    if (!generate) continue;
    const std::int64_t room = std::min(request->max_total - std::int64_t(request->history().size()),
                                       request->max_positions - request->num_tokens());
    jobs.push_back({request.get(), &request->drafting, generate, request->history(),
                    static_cast<std::size_t>(request->num_prompt), room - 1});
    deadline = std::min(deadline, request->deadline);
  }
  if (jobs.empty()) return;
  const auto set_drafting = [&](bool drafting) {
    const std::lock_guard lock(mutex_);
    drafting_ = drafting;
    const bool cancelled =
        std::any_of(active_.begin(), active_.end(), [](const auto& r) { return r->cancelled.load(); });
    interrupt_.asked = closing_ || cancelled;
    interrupt_.deadline = deadline;
  };
  if (drafter_.has_model()) set_drafting(true);
  drafter_.draft(jobs, rows, interrupt_);
  if (drafter_.has_model()) set_drafting(false);
}

EngineCore::RunResult EngineCore::run_batch(std::span<const std::int32_t> num_pages) {
  copied_ = false;
  for (std::size_t pool = 0; pool < num_pages.size(); ++pool) {
    if (plan_->num_pages(pool) >= num_pages[pool]) continue;
    try {
      plan_->reserve_pages(pool, num_pages[pool]);
    } catch (const MemoryBudgetError&) {
      return RunResult::kNoMemory;
    }
  }
  if (!encodes_) {
    for (const PageCopy& copy : scheduler_.copies()) plan_->copy_page(sequence_pools_[copy.pool], copy.from, copy.to);
  }
  copied_ = true;
  return plan_->run(batch(), &interrupt_) ? RunResult::kDone : RunResult::kInterrupted;
}

/// The final event; the sequence leaves the scheduler, what it computed stays in the cache.
void EngineCore::end(ActiveRequest& request, FinishReason reason, std::exception_ptr error, StopCause stop) {
  request.timings.cached_tokens = std::min(request.num_reused, request.num_prompt);
  drafter_.release(request.drafting, request.tokens);
  std::erase(encoding_line_, &request);
  if (request.embed()) {
    if (error || encoding_.whole) {
      encoding_cache().drop(request);
    } else {
      encoding_cache().retire(request);
    }
  } else if (error) {
    scheduler_.remove(request);
  } else {
    scheduler_.retire(request);
  }
  if (request.encoder_input) encoded_.drop(*request.encoder_input);
  const auto now = Clock::now();
  const auto started = request.started.value_or(now);
  const auto first_output = request.first_output.value_or(now);
  Timings& timings = request.timings;
  timings.queue_seconds = seconds(request.submitted, started);
  timings.prefill_seconds = seconds(started, first_output);
  timings.decode_seconds = seconds(first_output, now);
  Event last;
  last.finish = reason;
  last.text = request.text.finish();
  last.stop = std::move(stop);
  if (reason == FinishReason::kLength && request.text.stopped()) {  // U+FFFD for an unfinished character completed it
    last.finish = FinishReason::kStop;
    last.stop = StopCause(*request.text.stopped());
  }
  ++totals_.requests;
  totals_.prompt_tokens += static_cast<std::uint64_t>(timings.prompt_tokens);
  totals_.cached_tokens += static_cast<std::uint64_t>(timings.cached_tokens);
  totals_.generated_tokens += static_cast<std::uint64_t>(timings.generated_tokens);
  totals_.draft_tokens += static_cast<std::uint64_t>(timings.draft_tokens);
  totals_.accepted_tokens += static_cast<std::uint64_t>(timings.accepted_tokens);
  const auto at = std::find_if(active_.begin(), active_.end(), [&](const auto& r) { return r.get() == &request; });
  retired_.push_back(std::move(*at));
  active_.erase(at);
  work_ = true;  // someone may have waited for its pages
  request.results.finish(std::move(last), timings, std::move(error));
}

void EngineCore::end_unstarted(const std::shared_ptr<ActiveRequest>& request, FinishReason reason,
                               std::exception_ptr error) {
  Event last;
  last.finish = reason;
  request->timings.queue_seconds = seconds(request->submitted, Clock::now());
  ++totals_.requests;
  retired_.push_back(request);
  request->results.finish(std::move(last), request->timings, std::move(error));
}

void EngineCore::fail_all(const std::exception_ptr& error) {
  const std::lock_guard lock(mutex_);
  scheduler_.abandon(copied_);
  while (!active_.empty()) end(*active_.front(), FinishReason::kError, error);
  for (const auto& request : submitted_) end_unstarted(request, FinishReason::kError, error);
  submitted_.clear();
  for (Job& job : jobs_) job.done.set_exception(error);
  jobs_.clear();
}

}  // namespace sterna
