#include "plan/chain_plan.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace sterna {
namespace {

bool is_same_pool(const KvPoolInfo& a, const KvPoolInfo& b) { return a.window == b.window && a.kind == b.kind; }

using Plans = std::vector<std::shared_ptr<ProgramPlan>>;

const Plans& checked(const Plans& parts) {
  if (parts.empty()) throw ArgumentError("a chain of no plans");
  for (const auto& part : parts) {
    if (part == nullptr) throw ArgumentError("a chain with a plan that is none");
    if (part->kv_type() != parts[0]->kv_type()) throw ArgumentError("a chain of plans with different KV caches");
  }
  return parts;
}

std::int32_t least_tokens(const Plans& parts) {
  std::int32_t least = std::numeric_limits<std::int32_t>::max();
  for (const auto& part : checked(parts)) least = std::min(least, part->max_tokens());
  return least;
}

}  // namespace

ChainPlan::ChainPlan(const Program& program, std::vector<std::shared_ptr<ProgramPlan>> parts)
    : ProgramPlan(program, KvLayout(program, checked(parts)[0]->kv_type(), "chain"), least_tokens(parts),
                  checked(parts).back()->max_outputs()) {
  pools_.assign(layout().pools().begin(), layout().pools().end());
  for (KvPoolInfo& pool : pools_) pool.page_bytes = 0;
  std::uint64_t state_headers = 0;  // each part with states has one
  for (auto& plan : parts) {
    Part part{std::move(plan), std::vector<int>(pools_.size(), -1), {}, {}};
    for (const KvPoolInfo& own : part.plan->kv_pools()) {
      const auto found = std::ranges::find_if(pools_, [&](const KvPoolInfo& pool) { return is_same_pool(pool, own); });
      if (found == pools_.end() && own.page_bytes > 0) {
        throw ArgumentError("a chain with a plan that is no part of its program: no layer has the window " +
                            std::to_string(own.window));
      }
      // A part without any layer that keeps something has a pool all the same, whose pages nobody needs.
      const int at = found == pools_.end() ? -1 : static_cast<int>(found - pools_.begin());
      if (at >= 0) {
        part.own_pools[static_cast<std::size_t>(at)] = static_cast<int>(part.pools_of_chain.size());
        found->page_bytes += own.page_bytes;
        if (own.window == kStateWindow) state_headers += KvLayout::kStateHeaderBytes;
      }
      part.pools_of_chain.push_back(at);
    }
    parts_.push_back(std::move(part));
  }
  for (std::size_t i = 0; i < pools_.size(); ++i) {
    std::uint64_t expected = layout().pools()[i].page_bytes;
    if (pools_[i].window == kStateWindow) expected += state_headers - KvLayout::kStateHeaderBytes;
    if (pools_[i].page_bytes != expected) {
      throw ArgumentError("a chain whose plans are not the parts of its program: pages of window " +
                          std::to_string(pools_[i].window) + " have " + std::to_string(pools_[i].page_bytes) +
                          " bytes, not " + std::to_string(expected));
    }
  }
  const ProgramPlan& last = *parts_.back().plan;
  if (last.vocab_size() != vocab_size() || last.encoding().size != encoding().size) {
    throw ArgumentError("a chain whose last plan is not the end of its program");
  }
}

template <class Function>
bool ChainPlan::each_batch(const Batch& batch, Function function) {
  const std::size_t num_sequences = batch.page_tables.size() / std::max<std::size_t>(1, batch.num_pools);
  if (batch.num_pools != pools_.size() || batch.page_tables.size() % pools_.size() != 0) {
    throw ArgumentError("batch: " + std::to_string(batch.page_tables.size()) + " page tables, each sequence has " +
                        std::to_string(pools_.size()));
  }
  Batch own = batch;
  std::vector<std::span<const std::int32_t>> tables;
  for (Part& part : parts_) {
    const bool is_last = &part == &parts_.back();
    own.num_pools = part.pools_of_chain.size();
    tables.clear();
    for (std::size_t sequence = 0; sequence < num_sequences; ++sequence) {
      for (const int pool : part.pools_of_chain) {
        tables.push_back(pool < 0 ? std::span<const std::int32_t>()
                                  : batch.page_tables[sequence * pools_.size() + static_cast<std::size_t>(pool)]);
      }
    }
    own.page_tables = tables;
    part.kept.clear();
    std::ranges::copy_if(batch.kept, std::back_inserter(part.kept),
                         [&](const std::string& name) { return part.plan->value_size(name) > 0; });
    own.kept = part.kept;
    own.output_rows = is_last ? batch.output_rows : std::span<const std::int32_t>();
    own.largest = is_last ? batch.largest : std::span<const std::int32_t>();
    if (!function(*part.plan, own)) return false;
    own.received = batch.encode ? part.plan->encodings() : part.plan->logits();
  }
  return true;
}

bool ChainPlan::run(const Batch& batch, const Interrupt* interrupt) {
  return each_batch(batch, [&](ProgramPlan& part, const Batch& own) { return part.run(own, interrupt); });
}

std::string ChainPlan::first_non_finite(const Batch& batch, std::int32_t row) {
  std::string found;
  each_batch(batch, [&](ProgramPlan& part, const Batch& own) {
    found = part.first_non_finite(own, row);
    return found.empty() && part.run(own, nullptr);  // what the next one receives
  });
  return found;
}

std::int32_t ChainPlan::value_size(std::string_view name) const {
  for (const Part& part : parts_) {
    if (const std::int32_t size = part.plan->value_size(name); size > 0) return size;
  }
  return 0;
}

std::span<const float> ChainPlan::kept_row(std::string_view name, std::int32_t row, std::size_t output) const {
  for (const Part& part : parts_) {
    if (const auto found = part.plan->kept_row(name, row, output); !found.empty()) return found;
  }
  return {};
}

void ChainPlan::reserve_pages(std::size_t pool, std::int32_t num_pages) {
  for (const Part& part : parts_) {
    if (const int own = part.own_pools.at(pool); own >= 0) {
      part.plan->reserve_pages(static_cast<std::size_t>(own), num_pages);
    }
  }
}

std::int32_t ChainPlan::num_pages(std::size_t pool) const {
  std::int32_t least = std::numeric_limits<std::int32_t>::max();
  for (const Part& part : parts_) {
    if (const int own = part.own_pools.at(pool); own >= 0) {
      least = std::min(least, part.plan->num_pages(static_cast<std::size_t>(own)));
    }
  }
  return least;
}

void ChainPlan::copy_page(std::size_t pool, std::int32_t from, std::int32_t to) {
  for (const Part& part : parts_) {
    if (const int own = part.own_pools.at(pool); own >= 0) {
      part.plan->copy_page(static_cast<std::size_t>(own), from, to);
    }
  }
}

template <class Bytes, class Function>
void ChainPlan::each_piece(std::size_t pool, Bytes bytes, Function function) const {
  if (bytes.size() != pools_.at(pool).page_bytes) {
    throw ArgumentError("a page has " + std::to_string(pools_[pool].page_bytes) + " bytes");
  }
  for (const Part& part : parts_) {
    if (part.own_pools[pool] < 0) continue;
    const auto own = static_cast<std::size_t>(part.own_pools[pool]);
    const auto size = static_cast<std::size_t>(part.plan->kv_pools()[own].page_bytes);
    function(*part.plan, own, bytes.first(size));
    bytes = bytes.subspan(size);
  }
}

void ChainPlan::read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const {
  each_piece(pool, bytes, [page](const ProgramPlan& part, std::size_t own, std::span<std::uint8_t> piece) {
    part.read_page(own, page, piece);
  });
}

void ChainPlan::write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes) {
  each_piece(pool, bytes, [page](ProgramPlan& part, std::size_t own, std::span<const std::uint8_t> piece) {
    part.write_page(own, page, piece);
  });
}

std::string ChainPlan::kv_layout() const {
  std::string text = "chain";
  for (const Part& part : parts_) text += " (" + part.plan->kv_layout() + ")";
  return text;
}

std::vector<std::shared_ptr<ProgramPlan>> ChainPlan::parts() const {
  Plans plans;
  for (const Part& part : parts_) plans.push_back(part.plan);
  return plans;
}

PlanMemory ChainPlan::memory() const {
  PlanMemory memory;
  for (const Part& part : parts_) {
    const PlanMemory own = part.plan->memory();
    memory.weights += own.weights;
    memory.scratch += own.scratch;
  }
  memory.kv_pools = pools_;
  return memory;
}

std::map<std::string, int> ChainPlan::layouts() const {
  std::map<std::string, int> counts;
  for (const Part& part : parts_) {
    for (const auto& [layout, count] : part.plan->layouts()) counts[layout] += count;
  }
  return counts;
}

std::vector<std::string> ChainPlan::value_names() const {
  std::vector<std::string> names;
  for (const Part& part : parts_) {
    for (std::string& name : part.plan->value_names()) names.push_back(std::move(name));
  }
  return names;
}

std::vector<float> ChainPlan::value(const std::string& name) const {
  for (const Part& part : parts_) {
    const std::vector<std::string> names = part.plan->value_names();
    if (std::ranges::find(names, name) != names.end()) return part.plan->value(name);
  }
  throw ArgumentError("the plan keeps no value \"" + name + "\" of what ran last");
}

}  // namespace sterna
