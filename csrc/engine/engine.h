/// The Engine owns a Plan and its KV cache: one thread runs batches, any number of threads submit requests and wait.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "engine/pieces.h"
#include "engine/request.h"
#include "plan/plan.h"

namespace sterna {

class EngineCore;
struct ActiveRequest;
struct CachedSequence;

struct EngineOptions {
  std::int32_t context = 0;         // positions of one sequence
  std::int32_t max_sequences = 16;  // running at once
  std::int64_t kv_tokens = 0;       // positions of all sequences together; 0: one context
};

struct EngineStats {
  std::uint64_t running = 0;
  std::uint64_t waiting = 0;
  std::int32_t pages_in_use = 0;
  std::int32_t page_limit = 0;
  std::uint64_t runs = 0;    // batches computed
  std::uint64_t tokens = 0;  // rows computed
  std::uint64_t preemptions = 0;
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
  /// Of a finished ScoreRequest. Rethrows its error; Error when it was cancelled, ArgumentError when there are no
  /// scores.
  Scores scores() const;

 private:
  std::shared_ptr<EngineCore> core_;
  std::shared_ptr<ActiveRequest> request_;
};

/// A sequence that keeps its pages between requests, until others need them. Destroying it gives them back.
class KvSequence {
 public:
  KvSequence(std::shared_ptr<EngineCore> core, std::shared_ptr<CachedSequence> sequence);
  ~KvSequence();
  KvSequence(const KvSequence&) = delete;
  KvSequence& operator=(const KvSequence&) = delete;

  std::vector<std::int32_t> tokens() const;
  std::int32_t num_tokens() const;
  std::int32_t num_cached() const;
  /// Full pages are shared; the tokens of the last, partial page are computed again when the copy is used.
  std::unique_ptr<KvSequence> fork() const;
  /// Error while a request uses it.
  void clear();

 private:
  friend class Engine;
  std::shared_ptr<EngineCore> core_;
  std::shared_ptr<CachedSequence> sequence_;
};

class Engine {
 public:
  /// Throws ArgumentError. Nothing of the cache is allocated before it is needed.
  Engine(std::shared_ptr<Plan> plan, std::shared_ptr<const Pieces> pieces, EngineOptions options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// With a sequence, the longest common prefix of its tokens and the request's is not computed again, and the sequence
  /// then holds the request's tokens and those generated. Requests for one sequence run one after the other.
  /// Throws ContextOverflowError, MemoryBudgetError (can never fit into the pool), ArgumentError, Error when closed.
  std::unique_ptr<RequestHandle> submit(GenerateRequest request, const KvSequence* sequence = nullptr);
  std::unique_ptr<RequestHandle> submit(ScoreRequest request, const KvSequence* sequence = nullptr);
  std::unique_ptr<KvSequence> sequence();

  /// Ends all requests with an Error, joins the thread and lets go of the plan. Again is fine.
  void close();
  bool closed() const;
  EngineStats stats() const;
  std::int32_t context() const;
  std::int32_t vocab_size() const;

 private:
  std::unique_ptr<RequestHandle> submit(std::shared_ptr<ActiveRequest> request, const KvSequence* sequence);

  std::shared_ptr<EngineCore> core_;
  std::mutex close_mutex_;
  std::unique_ptr<std::thread> thread_;
};

}  // namespace sterna
