/// Pages of the KV cache going out and coming in: copies for a file, between two batches.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/engine_core.h"

namespace sterna {
namespace {

/// Before the bytes of a page: bit i is set where pool i has its part (a window's may be gone).
using Presence = std::uint64_t;

}  // namespace

void EngineCore::run_between(std::function<void()> work) {
  std::future<void> done;
  {
    const std::lock_guard lock(mutex_);
    if (closing_) throw Error("the engine is closed");
    done = jobs_.emplace_back(std::move(work), std::promise<void>()).done.get_future();
    work_ = true;
    wake_.notify_one();
  }
  done.get();
}

bool EngineCore::run_jobs(std::unique_lock<std::mutex>& lock) {
  if (jobs_.empty()) return false;
  std::vector<Job> jobs = std::exchange(jobs_, {});
  lock.unlock();
  for (Job& job : jobs) {
    try {
      job.work();
      job.done.set_value();
    } catch (...) {
      job.done.set_exception(std::current_exception());
    }
  }
  lock.lock();
  return true;
}

std::int32_t EngineCore::cached_pages(const std::string& context_key, std::span<const std::int32_t> tokens) const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::int32_t>(cache_.index().chain(context_key, tokens).size());
}

std::vector<std::vector<std::uint8_t>> EngineCore::export_pages(const std::string& context_key,
                                                                std::span<const std::int32_t> tokens,
                                                                std::int32_t first, std::int32_t count) {
  std::vector<std::vector<std::uint8_t>> pages;
  run_between([&] {
    std::vector<std::vector<std::int32_t>> numbers;
    {
      const std::lock_guard lock(mutex_);
      const auto chain = cache_.index().chain(context_key, tokens);
      const auto end = std::min<std::int64_t>(std::int64_t{first} + count, std::int64_t(chain.size()));
      for (std::int64_t i = first; i < end; ++i) numbers.push_back(chain[static_cast<std::size_t>(i)]->pages);
    }
    // Only this thread gives pages away, so they stay what they are.
    const std::span<const KvPoolInfo> pools = plan_->kv_pools();
    for (const auto& page : numbers) {
      std::vector<std::uint8_t> bytes(page_bytes());
      Presence present = 0;
      auto rest = std::span(bytes).subspan(sizeof present);
      for (std::size_t pool = 0; pool < sequence_pools_.size(); ++pool) {
        const auto part = rest.first(pools[sequence_pools_[pool]].page_bytes);
        rest = rest.subspan(part.size());
        if (page[pool] == kNoPage) continue;
        present |= Presence{1} << pool;
        plan_->read_page(sequence_pools_[pool], page[pool], part);
      }
      std::memcpy(bytes.data(), &present, sizeof present);
      pages.push_back(std::move(bytes));
    }
  });
  return pages;
}

std::int32_t EngineCore::import_pages(const std::string& context_key, std::span<const std::int32_t> tokens,
                                      std::int32_t first, std::span<const std::span<const std::uint8_t>> pages) {
  for (const auto& page : pages) {
    if (page.size() == page_bytes()) continue;
    throw ArgumentError("a page of " + std::to_string(page.size()) + " bytes; this engine's have " +
                        std::to_string(page_bytes()));
  }
  std::int32_t there = 0;
  run_between([&] {
    const std::span<const KvPoolInfo> pools = plan_->kv_pools();
    Sequence sequence;
    sequence.context_key = context_key;
    sequence.tokens.assign(tokens.begin(), tokens.end());
    const std::lock_guard lock(mutex_);
    cache_.follow(sequence);
    for (; there = sequence.num_indexed, there >= first && there < first + std::int64_t(pages.size()) &&
                                             (there + 1) * kPageSlots <= sequence.num_tokens();) {
      if (cache_.grow(sequence, (there + 1) * kPageSlots) < (there + 1) * kPageSlots) break;
      const std::span<const std::uint8_t> bytes = pages[static_cast<std::size_t>(there - first)];
      Presence present = 0;
      std::memcpy(&present, bytes.data(), sizeof present);
      auto rest = bytes.subspan(sizeof present);
      try {
        for (std::size_t pool = 0; pool < sequence_pools_.size(); ++pool) {
          const std::int32_t number = sequence.pages[pool].back();
          if (plan_->num_pages(sequence_pools_[pool]) <= number)
            plan_->reserve_pages(sequence_pools_[pool], number + 1);
          plan_->write_page(sequence_pools_[pool], number, rest.first(pools[sequence_pools_[pool]].page_bytes));
          rest = rest.subspan(pools[sequence_pools_[pool]].page_bytes);
        }
      } catch (const MemoryBudgetError&) {
        break;
      }
      cache_.add_page(sequence, present);
    }
    cache_.drop(sequence);
  });
  return there;
}

}  // namespace sterna
