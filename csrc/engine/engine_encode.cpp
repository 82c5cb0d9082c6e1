/// Texts to vectors: batches of the plan's function "encode", in turns with those of the scheduler.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/engine_core.h"

namespace sterna {

void EngineCore::check_has_logits() const {
  if (!has_logits_) {
    throw UnsupportedModelError("this model is an encoder: it makes vectors of texts (embed) and cannot continue them");
  }
}

/// Whole sequences must fit into a batch; others into what one sequence may take of the cache.
std::int32_t EngineCore::max_encoded() const {
  return encoding_.whole ? std::min(max_rows_, options_.context) : options_.context;
}

void EngineCore::check_encoder_input(const SequenceContext* context) const {
  const std::size_t count = context == nullptr ? 0 : context->encoder_tokens.size();
  if (count > 0 && !encoding_.keeps) throw ArgumentError("the model has no encoder: encoder_tokens mean nothing to it");
  if (count == 0 && encoding_.keeps) {
    throw UnsupportedModelError("this model continues nothing but what follows from a text that it encodes");
  }
  if (count > static_cast<std::size_t>(max_encoded())) {
    throw ContextOverflowError("the prompt has " + std::to_string(count) + " tokens; " + std::to_string(max_encoded()) +
                               " can be encoded at once");
  }
}

Sequence& EngineCore::encoded_part(ActiveRequest& request) const {
  return request.encoder_input ? *request.encoder_input : request;
}

void EngineCore::add_to_encode(ActiveRequest& request) {
  const auto behind = std::find_if(encoding_line_.begin(), encoding_line_.end(),
                                   [&](const ActiveRequest* other) { return request.priority < other->priority; });
  encoding_line_.insert(behind, &request);
}

/// Rows of those in line, in its order, and pages for them; nobody overtakes. False when it is the scheduler's turn, or
/// there are no pages, which running requests will give back.
bool EngineCore::pick_encodes() {
  const bool others = scheduler_.num_running() + scheduler_.num_waiting() > 0;
  const bool turn = !encoding_line_.empty() && !(encoded_last_ && others);
  encoded_last_ = false;
  picked_encodes_.clear();
  picked_requests_.clear();
  if (encoding_line_.empty()) scheduler_.hold(false);
  if (!turn) return false;
  std::int32_t rows_left = max_rows_;
  std::int32_t outputs_left = plan_->max_outputs();
  KvCache& cache = encoding_cache();
  for (ActiveRequest* request : encoding_line_) {
    Sequence& part = encoded_part(*request);
    if (!encoding_.whole) cache.reuse_pages(part);
    const std::int32_t pending = part.num_pending();
    std::int32_t count = std::min(pending, rows_left);
    if (outputs_left == 0 || count == 0 || (encoding_.whole && count < pending)) break;
    const std::int32_t wanted = part.num_computed + count;
    const std::int32_t have = cache.grow(part, wanted);
    if (have < wanted && (encoding_.whole || have == part.num_computed)) {
      cache.release_unused(part);
      break;
    }
    count = have - part.num_computed;
    picked_encodes_.push_back({&part, part.num_computed, count, count == pending ? 1 : 0});
    picked_requests_.push_back(request);
    rows_left -= count;
    outputs_left -= picked_encodes_.back().num_outputs;
  }
  // What ends now makes room for the line, not for newer requests; but those that were encoded must run to end.
  scheduler_.hold(picked_encodes_.empty() && !encoding_.keeps);
  if (picked_encodes_.empty() && scheduler_.num_running() == 0 && !(encoding_.keeps && others)) {
    ActiveRequest& first = *encoding_line_.front();
    const std::string message =
        "the KV cache has too few pages for a text of " + std::to_string(encoded_part(first).num_tokens()) + " tokens";
    end(first, FinishReason::kError, std::make_exception_ptr(MemoryBudgetError(message)));
    scheduler_.hold(false);
  }
  encoded_last_ = !picked_encodes_.empty();
  return encoded_last_;
}

/// Copies the vectors of the sequences that are complete.
void EngineCore::read_encodings() {
  outcomes_.clear();
  const auto width = static_cast<std::size_t>(encoding_.size);
  std::span<const float> vectors = plan_->encodings();
  for (std::size_t i = 0; i < picked_encodes_.size(); ++i) {
    const ScheduledRows& rows = picked_encodes_[i];
    ActiveRequest& request = request_of(i);
    outcomes_.push_back({&request, {}, nullptr});
    if (rows.num_outputs == 0) continue;
    const std::span<const float> vector = vectors.first(width);
    vectors = vectors.subspan(width);
    if (std::all_of(vector.begin(), vector.end(), [](float x) { return std::isfinite(x); })) {
      if (request.embed()) std::copy(vector.begin(), vector.end(), request.scores.get());
    } else {
      outcomes_.back().error = with_place(NumericError("the vector of the text is not finite"), rows);
    }
  }
}

void EngineCore::finish_encodes(RunResult result, const std::exception_ptr& error) {
  if (result == RunResult::kNoMemory) lower_page_limits();
  KvCache& cache = encoding_cache();
  for (std::size_t i = 0; i < picked_encodes_.size(); ++i) {
    ActiveRequest& request = request_of(i);
    Sequence& part = encoded_part(request);
    request.in_prefill = false;
    if (error) {
      end(request, FinishReason::kError, error);
    } else if (result != RunResult::kDone) {
      cache.release_unused(part);
    } else {
      part.num_computed += picked_encodes_[i].count;
      if (!encoding_.whole) cache.advance(part);
      if (outcomes_[i].error) {
        end(request, FinishReason::kError, outcomes_[i].error);
      } else if (part.num_pending() > 0) {
        continue;
      } else if (request.embed()) {
        end(request, FinishReason::kLength);
      } else {
        forget_encoded(request);
      }
    }
  }
  if (!error && result == RunResult::kDone) {
    ++totals_.runs;
    totals_.tokens += batch_tokens_.size();
  }
  picked_encodes_.clear();
  picked_requests_.clear();
}

/// What the decoder reads stays; the request begins to wait for the scheduler.
void EngineCore::forget_encoded(ActiveRequest& request) {
  for (std::size_t i = 0; i < encoded_pools_.size(); ++i) {
    if (plan_->kv_pools()[encoded_pools_[i]].kind == KvPoolKind::kTemporary) {
      encoded_.drop_pool(*request.encoder_input, i);
    }
  }
  std::erase(encoding_line_, &request);
  scheduler_.add(request);
}

}  // namespace sterna
