/// The Engine owns a Plan and its KV cache (and those of a draft model): one thread runs batches, any number of threads
/// submit requests and wait.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/pieces.h"
#include "engine/request.h"
#include "engine/speculation.h"
#include "plan/plan.h"

namespace sterna {

class EngineCore;
struct ActiveRequest;

struct EngineOptions {
  std::int32_t context = 0;         // positions of one sequence
  std::int32_t max_sequences = 16;  // running at once
  std::int64_t kv_tokens = 0;       // positions of all sequences together; 0: one context
  std::int32_t max_waiting = 1024;  // requests that wait; more are refused
  StepClock step_clock;             // null: the machine's
};

struct EngineStats {
  std::uint64_t running = 0;
  std::uint64_t waiting = 0;
  // Of the pool with the most pages in use:
  std::int32_t pages_in_use = 0;
  std::int32_t pages_cached = 0;  // idle: kept for requests that begin alike
  std::int32_t page_limit = 0;
  std::uint64_t runs = 0;    // batches computed
  std::uint64_t tokens = 0;  // rows computed
  std::uint64_t preemptions = 0;
  std::uint64_t requests = 0;       // ended
  std::uint64_t prompt_tokens = 0;  // of these
  std::uint64_t cached_tokens = 0;  // of the prompts: found in the cache
  std::uint64_t generated_tokens = 0;
  std::uint64_t draft_tokens = 0;  // guessed ahead, and those that were right
  std::uint64_t accepted_tokens = 0;
};

/// A submitted request. Destroying it cancels the request. Every method throws Error in a forked child.
class RequestHandle {
 public:
  RequestHandle(std::shared_ptr<EngineCore> core, std::shared_ptr<ActiveRequest> request);
  ~RequestHandle();
  RequestHandle(const RequestHandle&) = delete;
  RequestHandle& operator=(const RequestHandle&) = delete;

  /// As ResultQueue.
  std::optional<Event> next(std::chrono::milliseconds timeout);
  std::vector<Event> ready();
  void notify(std::shared_ptr<Notifier> notifier, std::uint64_t number, bool only_end);
  bool wait_finished(std::chrono::milliseconds timeout);
  bool exhausted() const;
  bool finished() const;
  Timings timings() const;
  /// The request ends within one step (decode) or as soon as the plan looks up (prefill).
  void cancel();

  struct Scores {
    std::shared_ptr<const float[]> data;
    std::size_t rows = 0;
    std::size_t columns = 0;  // 0: one number per row
  };
  /// Of a finished ScoreRequest, or the vector of an EmbedRequest (one row). Rethrows its error; Error when it was
  /// cancelled, ArgumentError when there are no scores.
  Scores scores() const;

 private:
  std::shared_ptr<EngineCore> core_;
  std::shared_ptr<ActiveRequest> request_;
};

class Engine {
 public:
  /// `draft_plan` is of a smaller model with the same vocabulary that guesses ahead, or null. Throws ArgumentError.
  /// Nothing of the caches is allocated before it is needed.
  Engine(std::shared_ptr<Plan> plan, std::shared_ptr<const Pieces> pieces, EngineOptions options,
         std::shared_ptr<Plan> draft_plan = nullptr);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// What the cache has of the request's tokens is not computed again. Throws ContextOverflowError, MemoryBudgetError
  /// (can never fit into the pool), QueueFullError, ArgumentError, Error when closed.
  std::unique_ptr<RequestHandle> submit(GenerateRequest request);
  std::unique_ptr<RequestHandle> submit(ScoreRequest request);
  std::unique_ptr<RequestHandle> submit(EmbedRequest request);

  /// Bytes of one page of the cache over all pools, as export and import have it.
  std::uint64_t page_bytes() const;
  /// Equal names: pages of one engine mean the same in another of the same model.
  std::string kv_layout() const;
  /// How many whole pages from the beginning of these tokens are in the cache.
  std::int32_t cached_pages(const std::string& context_key, const std::vector<std::int32_t>& tokens) const;
  /// Copies of those from page `first` on, `count` at most. Waits for the end of a step.
  std::vector<std::vector<std::uint8_t>> export_pages(const std::string& context_key,
                                                      const std::vector<std::int32_t>& tokens, std::int32_t first,
                                                      std::int32_t count);
  /// Puts pages, from number `first` on, into the cache, after those of these tokens that are there, without taking
  /// away what is in use; how many of the tokens' pages are there then. ArgumentError for bytes of another size.
  std::int32_t import_pages(const std::string& context_key, const std::vector<std::int32_t>& tokens, std::int32_t first,
                            const std::vector<std::span<const std::uint8_t>>& pages);

  /// Ends all requests with an Error, joins the thread and lets go of the plan. Again is fine.
  void close();
  bool closed() const;
  EngineStats stats() const;
  std::int32_t context() const;
  std::int32_t vocab_size() const;
  std::int32_t hidden_size() const;
  const EncodingInfo& encoding() const;
  /// Most tokens that an EmbedRequest may have.
  std::int32_t max_encoded() const;

 private:
  std::unique_ptr<RequestHandle> submit(std::shared_ptr<ActiveRequest> request, const RequestTerms& terms);

  std::shared_ptr<EngineCore> core_;
  std::mutex close_mutex_;
  std::unique_ptr<std::thread> thread_;
};

}  // namespace sterna
