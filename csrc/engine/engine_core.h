/// The state behind an Engine, and the loop that its thread runs. Handles keep it alive; only engine.h is for others.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "engine/drafting.h"
#include "engine/engine.h"
#include "engine/output_sampling.h"
#include "engine/scheduler.h"

namespace sterna {

/// A request from submit to its final event. The caller's part is constant after submit; the rest is the engine
/// thread's.
struct ActiveRequest : Sequence {
  using Clock = std::chrono::steady_clock;

  explicit ActiveRequest(GenerateRequest r);
  explicit ActiveRequest(ScoreRequest r);
  explicit ActiveRequest(EmbedRequest r);

  const GenerateRequest* generate() const { return std::get_if<GenerateRequest>(&request); }
  const ScoreRequest* score() const { return std::get_if<ScoreRequest>(&request); }
  const EmbedRequest* embed() const { return std::get_if<EmbedRequest>(&request); }
  const RequestTerms& terms() const {
    return std::visit([](const auto& r) -> const RequestTerms& { return r.terms; }, request);
  }
  /// All tokens, those too that a full context made the sequence forget.
  std::span<const std::int32_t> history() const { return forgot ? std::span(all_tokens) : std::span(tokens); }

  std::variant<GenerateRequest, ScoreRequest, EmbedRequest> request;
  std::unique_ptr<Sequence> encoder_input;  // the text that is encoded for it before it runs, if the model needs one
  ResultQueue results;
  std::atomic<bool> cancelled = false;
  Clock::time_point submitted = Clock::now();
  Clock::time_point deadline = Clock::time_point::max();

  TextStream text;
  std::int64_t max_total = 0;      // tokens, prompt included
  std::int64_t max_positions = 0;  // what the context, or the whole cache, holds
  std::int32_t num_prompt = 0;
  std::size_t score_rows = 0;
  std::size_t score_columns = 0;  // 0: one number per row
  std::shared_ptr<float[]> scores;

  DraftState drafting;
  bool forgot = false;
  std::vector<std::int32_t> all_tokens;  // where it forgot

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
  EngineCore(std::shared_ptr<Plan> plan, std::shared_ptr<const Pieces> pieces, EngineOptions options,
             std::shared_ptr<Plan> draft_plan);
  ~EngineCore();

  /// The engine thread: runs until `ask_to_close`, then ends all requests.
  void loop();
  void ask_to_close();
  /// After the thread has ended.
  void free_plans();

  /// Throws Error in a process other than the one that made the engine: its threads did not come along.
  void check_process() const;
  bool in_own_process() const;

  void submit(std::shared_ptr<ActiveRequest> request);
  void cancel(ActiveRequest& request);

  std::int32_t cached_pages(const std::string& context_key, std::span<const std::int32_t> tokens) const;
  std::vector<std::vector<std::uint8_t>> export_pages(const std::string& context_key,
                                                      std::span<const std::int32_t> tokens, std::int32_t first,
                                                      std::int32_t count);
  std::int32_t import_pages(const std::string& context_key, std::span<const std::int32_t> tokens, std::int32_t first,
                            std::span<const std::span<const std::uint8_t>> pages);

  bool closed() const;
  EngineStats stats() const;
  std::int32_t context() const { return options_.context; }
  std::int32_t vocab_size() const { return vocab_size_; }
  std::int32_t hidden_size() const { return hidden_size_; }
  /// Throws ArgumentError when there is no such value.
  std::int32_t value_size(const std::string& name) const;
  /// Throws ArgumentError for one that the plan does not have.
  void check_adapter(const SequenceContext* context) const;
  const EncodingInfo& encoding() const { return encoding_; }
  std::int32_t max_encoded() const;
  /// Throws what is wrong with the text that is encoded for a request: it is missing, too long, or of no use.
  void check_encoder_input(const SequenceContext* context) const;
  /// Throws UnsupportedModelError for a model that only encodes.
  void check_has_logits() const;
  /// With a word before them that tells which pools' parts are there.
  std::uint64_t page_bytes() const { return page_bytes_ + sizeof(std::uint64_t); }
  const std::string& kv_layout() const { return kv_layout_; }

 private:
  /// What the rows of one request came to.
  struct Outcome {
    ActiveRequest* request;
    std::vector<Sampled> sampled;  // the token after its last row, after those of its draft that were right
    std::exception_ptr error;
  };

  bool turn();
  void take_requests();
  void start(ActiveRequest& request);
  void make_drafts();
  /// Of the batch that runs.
  const std::vector<ScheduledRows>& picked() const { return encodes_ ? picked_encodes_ : scheduler_.picked(); }
  ActiveRequest& request_of(std::size_t entry) const;
  /// Page tables of its rows, by pool of the plan.
  void add_page_tables(const ActiveRequest& request);
  void build_batch();
  Batch batch() const;
  enum class RunResult { kDone, kInterrupted, kNoMemory };
  RunResult run_batch(std::span<const std::int32_t> num_pages);
  void finish_batch(RunResult result, const std::exception_ptr& error);
  void lower_page_limits();

  void add_to_encode(ActiveRequest& request);
  bool pick_encodes();
  /// What is encoded of a request, and who has its pages: where others than sequences' are needed, they have a cache of
  /// their own.
  Sequence& encoded_part(ActiveRequest& request) const;
  KvCache& encoding_cache() { return encoded_pools_.empty() ? cache_ : encoded_; }
  void forget_encoded(ActiveRequest& request);
  void read_encodings();
  void finish_encodes(RunResult result, const std::exception_ptr& error);

  void read_outputs();
  void read_tokens(Outcome& outcome, const ScheduledRows& rows, std::size_t first_output);
  void read_scores(ActiveRequest& request, const ScoreRequest& score, const ScheduledRows& rows,
                   std::size_t first_output);
  std::exception_ptr with_place(const NumericError& error, const ScheduledRows& rows);
  void apply(const Outcome& outcome);
  bool apply_token(ActiveRequest& request, const Sampled& sampled);
  void forget_middle(ActiveRequest& request);
  void end(ActiveRequest& request, FinishReason reason, std::exception_ptr error = nullptr, StopCause stop = {});
  void end_unstarted(const std::shared_ptr<ActiveRequest>& request, FinishReason reason, std::exception_ptr error);
  void fail_all(const std::exception_ptr& error);
  static SamplingContext sampling_context(const ActiveRequest& request);
  std::int64_t sequence_limit() const;

  /// Between two batches, on the engine thread, without the mutex. Rethrows what `work` throws.
  void run_between(std::function<void()> work);
  bool run_jobs(std::unique_lock<std::mutex>& lock);

  const EngineOptions options_;
  const std::int32_t vocab_size_;
  const std::int32_t hidden_size_;
  const std::int32_t num_adapters_;
  const bool has_logits_;
  const EncodingInfo encoding_;
  const std::int32_t max_rows_;  // of a batch
  const std::int32_t longrope_context_;
  const pid_t process_;
  std::shared_ptr<Plan> plan_;
  const std::shared_ptr<const Pieces> pieces_;
  const std::uint64_t page_bytes_;
  const std::string kv_layout_;
  Sampler sampler_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> closing_ = false;  // read without the mutex, which in a forked child may be locked for ever
  bool work_ = false;                  // something changed since the thread last looked
  Interrupt interrupt_;                // of the run in progress, be it the plan's or the draft model's
  bool drafting_ = false;              // the draft model runs
  // The plan's pools: those of sequences, which `cache_` and the scheduler know, and those of what is encoded.
  const std::vector<std::size_t> sequence_pools_;
  const std::vector<std::size_t> encoded_pools_;
  KvCache cache_;
  KvCache encoded_;
  Scheduler scheduler_;
  std::list<std::shared_ptr<ActiveRequest>> submitted_;  // not yet seen by the thread
  std::list<std::shared_ptr<ActiveRequest>> active_;
  // To be encoded, first to be served first; the scheduler has none of them.
  std::vector<ActiveRequest*> encoding_line_;
  bool encoded_last_ = false;  // the last batch was one of theirs
  // Ended. Destroyed outside of the mutex: a mask may need another lock (Python's) to go.
  std::vector<std::shared_ptr<ActiveRequest>> retired_;
  struct Job {
    std::function<void()> work;
    std::promise<void> done;
  };
  std::vector<Job> jobs_;
  EngineStats totals_;

  // The batch that runs.
  std::vector<ScheduledRows> picked_encodes_;    // its rows, if it encodes
  std::vector<ActiveRequest*> picked_requests_;  // whose they are
  bool encodes_ = false;
  std::vector<std::int32_t> batch_tokens_;
  std::vector<std::int32_t> batch_positions_;
  std::vector<std::int32_t> batch_sequences_;
  std::vector<std::span<const std::int32_t>> batch_page_tables_;
  std::vector<const SequenceContext*> batch_contexts_;
  std::vector<std::string> batch_kept_;
  std::vector<std::int32_t> batch_output_rows_;
  LargestWanted batch_largest_;
  std::vector<std::uint8_t> batch_long_sequences_;  // empty where the plan has no long ones
  std::vector<std::int32_t> batch_first_rows_;      // by picked entry
  bool copied_ = false;                             // its pages were copied
  bool only_decodes_ = false;
  std::vector<Outcome> outcomes_;
  Drafter drafter_;
};

}  // namespace sterna
