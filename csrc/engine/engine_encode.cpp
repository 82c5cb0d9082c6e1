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
  if (encoding_line_.empty()) scheduler_.hold(false);
  if (!turn) return false;
  std::int32_t rows_left = max_rows_;
  std::int32_t outputs_left = plan_->max_outputs();
  for (ActiveRequest* request : encoding_line_) {
    if (!encoding_.whole) cache_.reuse_pages(*request);
    const std::int32_t pending = request->num_pending();
    std::int32_t count = std::min(pending, rows_left);
    if (outputs_left == 0 || count == 0 || (encoding_.whole && count < pending)) break;
    const std::int32_t wanted = request->num_computed + count;
    const std::int32_t have = cache_.grow(*request, wanted);
    if (have < wanted && (encoding_.whole || have == request->num_computed)) {
      cache_.release_unused(*request);
      break;
    }
    count = have - request->num_computed;
    picked_encodes_.push_back({request, request->num_computed, count, count == pending ? 1 : 0});
    rows_left -= count;
    outputs_left -= picked_encodes_.back().num_outputs;
  }
  scheduler_.hold(picked_encodes_.empty());  // what ends now makes room for the line, not for newer requests
  if (picked_encodes_.empty() && scheduler_.num_running() == 0) {
    ActiveRequest& first = *encoding_line_.front();
    const std::string message =
        "the KV cache has too few pages for a text of " + std::to_string(first.num_tokens()) + " tokens";
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
  for (const ScheduledRows& rows : picked_encodes_) {
    auto& request = static_cast<ActiveRequest&>(*rows.sequence);
    outcomes_.push_back({&request, {}, nullptr});
    if (rows.num_outputs == 0) continue;
    const std::span<const float> vector = vectors.first(width);
    vectors = vectors.subspan(width);
    if (std::all_of(vector.begin(), vector.end(), [](float x) { return std::isfinite(x); })) {
      std::copy(vector.begin(), vector.end(), request.scores.get());
    } else {
      outcomes_.back().error = with_place(NumericError("the vector of the text is not finite"), rows);
    }
  }
}

void EngineCore::finish_encodes(RunResult result, const std::exception_ptr& error) {
  if (result == RunResult::kNoMemory) lower_page_limits();
  for (std::size_t i = 0; i < picked_encodes_.size(); ++i) {
    const ScheduledRows& rows = picked_encodes_[i];
    auto& request = static_cast<ActiveRequest&>(*rows.sequence);
    request.in_prefill = false;
    if (error) {
      end(request, FinishReason::kError, error);
    } else if (result != RunResult::kDone) {
      cache_.release_unused(request);
    } else {
      request.num_computed += rows.count;
      if (!encoding_.whole) cache_.advance(request);
      if (outcomes_[i].error) {
        end(request, FinishReason::kError, outcomes_[i].error);
      } else if (request.num_pending() == 0) {
        end(request, FinishReason::kLength);
      }
    }
  }
  if (!error && result == RunResult::kDone) {
    ++totals_.runs;
    totals_.tokens += batch_tokens_.size();
  }
  picked_encodes_.clear();
}

}  // namespace sterna
