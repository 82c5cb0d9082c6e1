/// What callers ask of an Engine, and the queue through which they get it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/notifier.h"
#include "engine/sampler.h"
#include "engine/sequence.h"
#include "engine/text_stream.h"

namespace sterna {

/// How a request stands to others.
struct RequestTerms {
  Priority priority = Priority::kInteractive;
  std::optional<double> timeout_seconds;           // from submit on; then it ends with DeadlineError
  std::string context_key;                         // what else its K and V depend on; see PrefixIndex
  std::shared_ptr<const SequenceContext> context;  // null: nothing else
};

/// Tokens to continue.
struct GenerateRequest {
  std::vector<std::int32_t> tokens;
  std::optional<std::int32_t> max_tokens;  // nothing: up to the context; 0: only computes the prompt
  SamplingParams sampling;
  std::uint32_t choice = 0;
  std::vector<std::int32_t> stop_ids;
  std::vector<std::string> stop_strings;  // UTF-8
  int top_logprobs = -1;                  // as SamplingContext
  Mask mask;
  bool special = false;             // control tokens appear in the text
  bool drop_leading_space = false;  // of the text
  /// Tokens guessed ahead: so many wherever there is a guess, 0 none, nothing as many as pay.
  std::optional<std::int32_t> draft_tokens;
  /// When the context is full: false ends the text; true forgets the middle of it, computes the rest again, and goes
  /// on.
  bool shift_context = false;
  RequestTerms terms;
};

/// Tokens to judge, teacher-forced.
struct ScoreRequest {
  std::vector<std::int32_t> tokens;
  /// The first row wanted. Row i is what the model says after tokens[i].
  std::int32_t positions_from = 0;
  /// False: log p(tokens[i + 1]) for each row but the last token's; true: whole rows of logits, the last token's too.
  bool logits = false;
  std::string hidden = {};  // with `logits`: rows of this value instead of the logits
  RequestTerms terms = {};
};

/// Tokens to make one vector of, with the plan's function "encode".
struct EmbedRequest {
  std::vector<std::int32_t> tokens;
  RequestTerms terms;
};

enum class FinishReason { kNone, kStop, kLength, kCancelled, kError };

/// What stopped a text: a token or a string.
using StopCause = std::variant<std::monostate, std::int32_t, std::string>;

/// One token, or the end: token events come first, then exactly one with a finish reason and the last text.
struct Event {
  std::optional<Sampled> sampled;
  std::string text;
  FinishReason finish = FinishReason::kNone;
  StopCause stop;
};

struct Timings {
  double queue_seconds = 0.0;    // from submit to the first batch
  double prefill_seconds = 0.0;  // to the first token
  double decode_seconds = 0.0;   // to the end
  std::int32_t prompt_tokens = 0;
  std::int32_t cached_tokens = 0;  // of the prompt: found in the cache
  std::int32_t generated_tokens = 0;
  std::int32_t draft_tokens = 0;     // guessed and computed along
  std::int32_t accepted_tokens = 0;  // of these: were right
};

/// The results of one request; the engine writes, any thread reads.
class ResultQueue {
 public:
  void push(Event event);
  /// The final event. `error` is given for FinishReason::kError.
  void finish(Event event, const Timings& timings, std::exception_ptr error);

  /// The next event, or nothing when none came in time or all were taken. Rethrows the request's error instead of
  /// giving the final event.
  std::optional<Event> next(std::chrono::milliseconds timeout);
  /// The events that are there now. Rethrows the request's error when that is all that is left.
  std::vector<Event> ready();
  /// From now on `notifier` is told `number` when there are events to take, or with `only_end` the final one. It is not
  /// told again before all have been taken. What came before this call counts as well.
  void notify(std::shared_ptr<Notifier> notifier, std::uint64_t number, bool only_end);
  /// Whether the final event is there, waiting for it at most so long.
  bool wait_finished(std::chrono::milliseconds timeout);
  /// Whether all events were taken, the final one too.
  bool exhausted();
  bool finished();
  /// kNone before the end. Rethrows the request's error.
  FinishReason finish_reason();
  /// Zeros before the end.
  Timings timings();

 private:
  void add(Event event, std::unique_lock<std::mutex> lock);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Notifier> notifier_;
  std::uint64_t number_ = 0;
  bool only_end_ = false;
  bool told_ = false;  // and not all was taken since
  std::deque<Event> events_;
  FinishReason finish_ = FinishReason::kNone;
  std::exception_ptr error_;
  Timings timings_;
};

}  // namespace sterna
