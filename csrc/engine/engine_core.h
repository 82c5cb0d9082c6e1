/// The state behind an Engine, and the loop that its thread runs. Handles keep it alive; only engine.h is for others.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "engine/scheduler.h"

namespace sterna {

/// A sequence and who uses it. Guarded by the core's mutex.
struct CachedSequence : Sequence {
  ActiveRequest* user = nullptr;
  bool kept = false;  // a KvSequence holds it: its pages stay after the request
};

/// A request from submit to its final event. The caller's part is constant after submit; the rest is the engine
/// thread's.
struct ActiveRequest {
  using Clock = std::chrono::steady_clock;

  explicit ActiveRequest(GenerateRequest r);
  explicit ActiveRequest(ScoreRequest r) : request(std::move(r)) {}

  std::variant<GenerateRequest, ScoreRequest> request;
  ResultQueue results;
  std::atomic<bool> cancelled = false;
  std::shared_ptr<CachedSequence> sequence;

  TextStream text;
  std::int32_t max_total = 0;  // tokens, prompt included
  std::int32_t num_prompt = 0;
  std::size_t score_rows = 0;
  std::size_t score_columns = 0;  // 0: one number per row
  std::shared_ptr<float[]> scores;

  Clock::time_point submitted = Clock::now();
  std::optional<Clock::time_point> started;  // first picked
  std::optional<Clock::time_point> first_output;
  Timings timings;
  bool in_prefill = false;  // has several rows in the batch that runs now; guarded by the core's mutex
};

/// Threads: `mutex_` guards everything but the plan and the sampler, which only the engine thread touches. It is a leaf
/// (but for the queues of results) and never held while the plan runs or a mask is called, so that no caller waits for
/// a step.
class EngineCore {
 public:
  EngineCore(std::shared_ptr<Plan> plan, std::shared_ptr<const Pieces> pieces, EngineOptions options);
  ~EngineCore();

  /// The engine thread: runs until `ask_to_close`, then ends all requests.
  void loop();
  void ask_to_close();
  /// After the thread has ended.
  void free_plan();

  /// Throws Error in a process other than the one that made the engine: its threads did not come along.
  void check_process() const;
  bool in_own_process() const;

  void submit(std::shared_ptr<ActiveRequest> request);
  void cancel(ActiveRequest& request);
  /// Lets a sequence go that no KvSequence holds any more.
  void drop(CachedSequence& sequence);
  std::shared_ptr<CachedSequence> fork(const CachedSequence& sequence);
  void clear(CachedSequence& sequence);

  std::unique_lock<std::mutex> lock() const { return std::unique_lock(mutex_); }
  bool closed() const;
  EngineStats stats() const;
  std::int32_t context() const { return options_.context; }
  std::int32_t vocab_size() const { return vocab_size_; }

 private:
  /// What one row, or one sequence's rows, came to.
  struct Outcome {
    ActiveRequest* request;
    std::optional<Sampled> sampled;
    std::exception_ptr error;
  };

  bool turn();
  void take_requests();
  void start(const std::shared_ptr<ActiveRequest>& request);
  void build_batch();
  enum class RunResult { kDone, kCancelled, kNoMemory };
  RunResult run_batch(std::int32_t num_pages);
  void read_outputs();
  void read_scores(ActiveRequest& request, const ScoreRequest& score, const ScheduledRows& rows,
                   std::size_t first_output);
  void apply(const Outcome& outcome);
  void apply_token(ActiveRequest& request, const GenerateRequest& generate, Sampled sampled);
  void end(ActiveRequest& request, FinishReason reason, std::exception_ptr error = nullptr, StopCause stop = {});
  void fail_all(const std::exception_ptr& error);
  std::span<const float> logits_row(std::size_t row) const;

  const EngineOptions options_;
  const std::int32_t vocab_size_;
  const pid_t process_;
  std::shared_ptr<Plan> plan_;
  const std::shared_ptr<const Pieces> pieces_;
  Sampler sampler_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool closing_ = false;
  bool work_ = false;  // something changed since the thread last looked
  std::atomic<bool> run_cancel_ = false;
  KvPages pages_;
  Scheduler scheduler_;
  std::list<std::shared_ptr<ActiveRequest>> submitted_;  // not yet started: new, or its sequence is in use
  std::list<std::shared_ptr<ActiveRequest>> active_;
  // Ended. Destroyed outside of the mutex: a mask may need another lock (Python's) to go.
  std::vector<std::shared_ptr<ActiveRequest>> retired_;
  std::uint64_t num_runs_ = 0;
  std::uint64_t num_rows_ = 0;

  // The batch that runs.
  std::vector<std::int32_t> batch_tokens_;
  std::vector<std::int32_t> batch_positions_;
  std::vector<std::int32_t> batch_sequences_;
  std::vector<std::span<const std::int32_t>> batch_page_tables_;
  std::vector<std::int32_t> batch_output_rows_;
  std::vector<Outcome> outcomes_;
};

}  // namespace sterna
