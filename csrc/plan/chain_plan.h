/// A Program whose layers are divided between devices: the plans of its parts, run one after the other as if they were
/// one. What the first has computed of each row is copied to the next, through the host.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plan/program_plan.h"

namespace sterna {

class ChainPlan final : public ProgramPlan {
 public:
  /// `parts` are the plans of what split_layers made of the program (once, or of its second part again), in their
  /// order, fused or not, all with the same type of KV cache. A batch has no more rows than each of them takes. Throws
  /// ArgumentError for parts that are not the program's.
  ChainPlan(const Program& program, std::vector<std::shared_ptr<ProgramPlan>> parts);

  bool run(const Batch& batch, const Interrupt* interrupt) override;
  std::span<const float> logits() const override { return parts_.back().plan->logits(); }
  std::span<const float> logits_row(std::size_t output) override { return parts_.back().plan->logits_row(output); }
  std::int32_t most_largest() const override { return parts_.back().plan->most_largest(); }
  std::span<const TokenLogit> largest_logits(std::size_t output) const override {
    return parts_.back().plan->largest_logits(output);
  }
  std::span<const float> encodings() const override { return parts_.back().plan->encodings(); }
  std::int32_t value_size(std::string_view name) const override;
  std::span<const float> kept_row(std::string_view name, std::int32_t row, std::size_t output) const override;
  std::string first_non_finite(const Batch& batch, std::int32_t row) override;

  /// A page has the bytes of all parts, one after the other. There are as many pages as the part with the fewest has.
  std::span<const KvPoolInfo> kv_pools() const override { return pools_; }
  void reserve_pages(std::size_t pool, std::int32_t num_pages) override;
  std::int32_t num_pages(std::size_t pool) const override;
  void copy_page(std::size_t pool, std::int32_t from, std::int32_t to) override;
  void read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const override;
  void write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes) override;
  std::string kv_layout() const override;

  std::vector<std::shared_ptr<ProgramPlan>> parts() const;
  PlanMemory memory() const override;
  std::map<std::string, int> layouts() const override;
  std::vector<std::string> value_names() const override;
  std::vector<float> value(const std::string& name) const override;

 private:
  struct Part {
    std::shared_ptr<ProgramPlan> plan;
    std::vector<int> own_pools;       // by pool of the chain: its number in the part, or -1
    std::vector<int> pools_of_chain;  // the other way round
    std::vector<std::string> kept;    // of the batch
  };
  /// Calls function(plan, its pool, its bytes) for each part of a page.
  template <class Bytes, class Function>
  void each_piece(std::size_t pool, Bytes bytes, Function function) const;
  /// Calls function(part, batch) with what the parts are to run, one after the other, until one gives false.
  template <class Function>
  bool each_batch(const Batch& batch, Function function);

  std::vector<Part> parts_;
  std::vector<KvPoolInfo> pools_;
};

}  // namespace sterna
