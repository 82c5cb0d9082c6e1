/// What plans that are compiled from a Program have in common: facts about it, and whether a batch can be run.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plan/kv_layout.h"
#include "plan/plan.h"
#include "plan/state_runs.h"
#include "program/program.h"

namespace sterna {

/// The function that a batch runs.
inline std::string_view function_of(const Batch& batch) { return batch.encode ? "encode" : "logits"; }

class ProgramPlan : public Plan {
 public:
  std::span<const KvPoolInfo> kv_pools() const override { return kv_layout_.pools(); }
  std::string kv_layout() const override { return kv_layout_.layout(); }
  std::int32_t value_size(std::string_view name) const override;
  std::int32_t longrope_context() const override { return longrope_context_; }
  /// Width of the logits; where there are none, the number of tokens.
  std::int32_t vocab_size() const override { return vocab_size_; }
  std::int32_t hidden_size() const override { return hidden_size_; }
  std::int32_t num_adapters() const override { return num_adapters_; }
  bool has_logits() const override { return used_pools_.contains("logits"); }
  EncodingInfo encoding() const override { return encoding_; }
  std::int32_t max_tokens() const override { return max_tokens_; }
  std::int32_t max_outputs() const override { return max_outputs_; }
  KvType kv_type() const { return kv_layout_.type(); }

  /// Layout names with how many matrices each holds.
  virtual std::map<std::string, int> layouts() const = 0;
  /// Names of the values that value() knows, in execution order by function; none unless the plan keeps them.
  virtual std::vector<std::string> value_names() const = 0;
  /// Rows of a node's result after a run of its function, [rows, features], copied. Throws ArgumentError.
  virtual std::vector<float> value(const std::string& name) const = 0;

 protected:
  /// Copies the program. Throws UnsupportedModelError, and ArgumentError for limits below 1.
  ProgramPlan(const Program& program, const KvLayout& kv_layout, std::int32_t max_tokens, std::int32_t max_outputs);

  const Program& program() const { return program_; }
  const KvLayout& layout() const { return kv_layout_; }

  /// Throws ArgumentError for a batch that cannot be run; `states` holds the pages of states, if there are any.
  void check(const Batch& batch, const StatePages& states) const;

 private:
  void check_pages(const Batch& batch, std::size_t first_row, std::size_t last_row) const;

  const Program program_;
  const KvLayout kv_layout_;
  std::map<std::string, std::vector<std::size_t>, std::less<>> used_pools_;  // by function, ascending
  std::map<std::string, std::int64_t, std::less<>> received_floats_;         // by function, of a row
  EncodingInfo encoding_;
  const std::int32_t max_tokens_;
  const std::int32_t max_outputs_;
  std::int32_t num_token_ids_ = 0;  // ids that every embedding table has a row for
  std::int32_t num_positions_ = 0;  // those that every table of learned positions has a row for
  std::int32_t vocab_size_ = 0;
  std::int32_t hidden_size_ = 0;
  std::int32_t num_adapters_ = 0;
  std::int32_t longrope_context_ = 0;
};

/// Throws ArgumentError unless both are at least 1; no more outputs than tokens.
std::int32_t checked_outputs(std::int32_t max_tokens, std::int32_t max_outputs);

}  // namespace sterna
