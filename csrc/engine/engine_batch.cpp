/// What the rows that were picked need to become a Batch of the plan.
#include <algorithm>

#include "engine/engine_core.h"

namespace sterna {

void EngineCore::build_batch() {
  batch_tokens_.clear();
  batch_positions_.clear();
  batch_sequences_.clear();
  batch_page_tables_.clear();
  batch_contexts_.clear();
  batch_kept_.clear();
  batch_long_sequences_.clear();
  batch_output_rows_.clear();
  batch_largest_.clear();
  batch_first_rows_.clear();
  interrupt_.asked = false;
  interrupt_.deadline = ActiveRequest::Clock::time_point::max();
  only_decodes_ = !encodes_;
  const auto now = ActiveRequest::Clock::now();
  std::int32_t sequence = 0;
  for (std::size_t entry = 0; entry < picked().size(); ++entry) {
    const ScheduledRows& rows = picked()[entry];
    ActiveRequest& request = request_of(entry);
    const Sequence& part = *rows.sequence;
    const std::int32_t own = part.num_tokens();
    batch_first_rows_.push_back(static_cast<std::int32_t>(batch_tokens_.size()));
    const GenerateRequest* generate = encodes_ ? nullptr : request.generate();
    for (std::int32_t i = 0; i < rows.count; ++i) {
      const std::int32_t position = rows.first + i;
      if (i >= rows.count - rows.num_outputs) {
        batch_output_rows_.push_back(static_cast<std::int32_t>(batch_tokens_.size()));
        if (generate != nullptr) {
          batch_largest_.add(generate->sampling, sampling_context(request), std::max(0, position + 1 - own));
        } else {
          batch_largest_.add_whole_row();
        }
      }
      batch_tokens_.push_back(position < own ? part.tokens[static_cast<std::size_t>(position)]
                                             : part.draft[static_cast<std::size_t>(position - own)]);
      batch_positions_.push_back(position);
      batch_sequences_.push_back(sequence);
    }
    ++sequence;
    add_page_tables(request);
    batch_contexts_.push_back(request.terms().context.get());
    if (longrope_context_ > 0) batch_long_sequences_.push_back(request.is_long ? 1 : 0);
    if (const ScoreRequest* score = request.score(); score && !encodes_ && !score->hidden.empty()) {
      if (std::ranges::find(batch_kept_, score->hidden) == batch_kept_.end()) batch_kept_.push_back(score->hidden);
    }
    request.in_prefill = encodes_ || own - rows.first > 1;
    only_decodes_ = only_decodes_ && !request.in_prefill;
    interrupt_.deadline = std::min(interrupt_.deadline, request.deadline);
    if (!request.started) request.started = now;
  }
}

ActiveRequest& EngineCore::request_of(std::size_t entry) const {
  return encodes_ ? *picked_requests_[entry] : static_cast<ActiveRequest&>(*picked()[entry].sequence);
}

void EngineCore::add_page_tables(const ActiveRequest& request) {
  const std::size_t first = batch_page_tables_.size();
  batch_page_tables_.resize(first + sequence_pools_.size() + encoded_pools_.size());
  const auto set = [&](const Sequence& sequence, std::span<const std::size_t> pools) {
    for (std::size_t i = 0; i < sequence.pages.size(); ++i) batch_page_tables_[first + pools[i]] = sequence.pages[i];
  };
  if (request.embed()) {
    set(request, encoded_pools_.empty() ? sequence_pools_ : encoded_pools_);
  } else {
    set(request, sequence_pools_);
    if (request.encoder_input) set(*request.encoder_input, encoded_pools_);
  }
}

Batch EngineCore::batch() const {
  Batch batch{batch_tokens_, batch_positions_, batch_sequences_, batch_page_tables_, batch_output_rows_};
  batch.contexts = batch_contexts_;
  batch.largest = batch_largest_.counts();
  batch.kept = batch_kept_;
  batch.long_sequences = batch_long_sequences_;
  batch.num_pools = sequence_pools_.size() + encoded_pools_.size();
  batch.encode = encodes_;
  return batch;
}

}  // namespace sterna
