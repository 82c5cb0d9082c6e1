#include "engine/kv_cache.h"

#include <algorithm>
#include <limits>

namespace sterna {
namespace {

/// A copied page of fewer tokens than this saves less than it costs: a batch of 16 rows takes about as long as one row.
constexpr std::int32_t kMinCopied = 16;

std::span<const std::int32_t> tokens_of_page(const Sequence& sequence, std::int32_t page) {
  const std::int32_t first = page * kPageSlots;
  const std::int32_t count = std::min(kPageSlots, sequence.num_tokens() - first);
  return std::span(sequence.tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
}

/// Tokens from here on are computed: their logits are wanted. The last one always is, so that every request runs.
std::int32_t reusable_end(const Sequence& sequence) {
  return std::min(sequence.output_from, sequence.num_tokens() - 1);
}

/// How far back a row looks, itself included; 0: to the first. A state is that of the token before.
std::int32_t reach(std::int32_t window) { return window == kStateWindow ? 2 : window; }

/// Pages with a part in the window of some row; one more because windows do not begin at a page's.
std::int32_t window_pages(std::int32_t window) { return pages_for(reach(window)) + 1; }

/// Bytes of states that are kept for sequences to come.
constexpr std::uint64_t kKeptStateBytes = std::uint64_t{256} << 20;

}  // namespace

std::int32_t pool_page_limit(std::int32_t window, std::int64_t kv_tokens, std::int32_t max_sequences,
                             std::int32_t max_tokens, std::uint64_t page_bytes) {
  const std::int32_t all = pages_for(kv_tokens);
  if (window == 0) return all;
  if (window == kStateWindow) {
    const std::uint64_t kept = kKeptStateBytes / std::max<std::uint64_t>(1, page_bytes);
    const std::int64_t pages = std::int64_t{max_sequences} * window_pages(window) +
                               static_cast<std::int64_t>(std::min(kept, static_cast<std::uint64_t>(all)));
    return static_cast<std::int32_t>(std::min<std::int64_t>(pages, std::numeric_limits<std::int32_t>::max()));
  }
  const std::int64_t seen = std::int64_t{max_sequences} * window_pages(window) + pages_for(max_tokens) + 1;
  return static_cast<std::int32_t>(std::min<std::int64_t>(all, seen));
}

std::vector<std::int32_t> pool_page_limits(const Plan& plan, std::int64_t kv_tokens, std::int32_t max_sequences) {
  std::vector<std::int32_t> limits;
  for (const KvPoolInfo& pool : plan.kv_pools()) {
    limits.push_back(pool_page_limit(pool.window, kv_tokens, max_sequences, plan.max_tokens(), pool.page_bytes));
  }
  return limits;
}

std::vector<std::int32_t> pool_windows(const Plan& plan) {
  std::vector<std::int32_t> windows;
  for (const KvPoolInfo& pool : plan.kv_pools()) windows.push_back(pool.window);
  return windows;
}

KvCache::KvCache(std::span<const std::int32_t> windows, std::span<const std::int32_t> limits) : index_(pools_) {
  for (std::size_t pool = 0; pool < windows.size(); ++pool) pools_.push_back({windows[pool], KvPages(limits[pool])});
  has_state_ = std::ranges::find(windows, kStateWindow) != windows.end();
}

/// The first page that a row at `position` sees.
std::int32_t KvCache::first_visible_page(std::size_t pool, std::int32_t position) const {
  const std::int32_t window = reach(pools_[pool].window);
  return window == 0 ? 0 : std::max(0, position - window + 1) / kPageSlots;
}

std::int32_t KvCache::num_pages(const Sequence& sequence) const {
  return sequence.pages.empty() ? 0 : static_cast<std::int32_t>(sequence.pages.front().size());
}

bool KvCache::has_pages(const Sequence& sequence) const {
  return std::any_of(sequence.pages.begin(), sequence.pages.end(), [](const auto& table) {
    return std::any_of(table.begin(), table.end(), [](std::int32_t page) { return page != kNoPage; });
  });
}

void KvCache::attach(Sequence& sequence) {
  if (!sequence.node) sequence.node = index_.enter(sequence.context_key);
  if (sequence.pages.empty()) sequence.pages.resize(pools_.size());
}

void KvCache::count_reused(Sequence& sequence, std::int32_t from) {
  sequence.num_reused += std::max(0, sequence.num_computed - std::max(from, sequence.num_seen));
  sequence.num_seen = std::max(sequence.num_seen, sequence.num_computed);
}

/// Whether the row after the chain, which continues the sequence's pages, would find all the pages that it sees.
bool KvCache::sees_its_windows(const Sequence& sequence, std::span<PrefixIndex::Node* const> chain) const {
  const std::int32_t held = num_pages(sequence);
  const auto end = held + static_cast<std::int32_t>(chain.size());
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    for (std::int32_t page = first_visible_page(pool, end * kPageSlots); page < end; ++page) {
      const std::int32_t number = page < held ? sequence.pages[pool][static_cast<std::size_t>(page)]
                                              : chain[static_cast<std::size_t>(page - held)]->pages[pool];
      if (number == kNoPage) return false;
    }
  }
  return true;
}

/// Adds the chain's pages to the sequence's, but for those that no later row sees.
void KvCache::take(Sequence& sequence, std::span<PrefixIndex::Node* const> chain) {
  const std::int32_t held = num_pages(sequence);
  const auto end = held + static_cast<std::int32_t>(chain.size());
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    const std::int32_t first = first_visible_page(pool, end * kPageSlots);
    for (std::int32_t page = held; page < end; ++page) {
      const std::int32_t number = page < first ? kNoPage : chain[static_cast<std::size_t>(page - held)]->pages[pool];
      if (number != kNoPage) pools_[pool].pages.share(number);
      sequence.pages[pool].push_back(number);
    }
  }
}

void KvCache::reuse_pages(Sequence& sequence) {
  attach(sequence);
  release_unused(sequence);
  if (sequence.num_computed != sequence.num_indexed * kPageSlots) return;
  std::vector<PrefixIndex::Node*> chain;
  PrefixIndex::Node* at = sequence.node;
  for (std::int32_t page = sequence.num_indexed; (page + 1) * kPageSlots <= reusable_end(sequence); ++page) {
    at = index_.child(*at, tokens_of_page(sequence, page));
    if (!at) break;
    chain.push_back(at);
  }
  const auto known = static_cast<std::int32_t>(chain.size());
  while (!chain.empty() && !sees_its_windows(sequence, chain)) chain.pop_back();
  // A beginning that several sequences have is worth a state, for the next of them.
  if (known > static_cast<std::int32_t>(chain.size())) sequence.kept_state_page = sequence.num_indexed + known - 1;
  if (chain.empty()) return;
  const std::int32_t before = sequence.num_computed;
  take(sequence, chain);
  index_.move(sequence.node, chain.back());
  index_.touch(*sequence.node);
  sequence.num_indexed = num_pages(sequence);
  sequence.num_computed = sequence.num_indexed * kPageSlots;
  count_reused(sequence, before);
  release_passed(sequence, before);
}

void KvCache::follow(Sequence& sequence) {
  attach(sequence);
  const std::vector<PrefixIndex::Node*> chain = index_.chain(sequence.context_key, sequence.tokens);
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    for (const PrefixIndex::Node* node : chain) {
      if (node->pages[pool] != kNoPage) pools_[pool].pages.share(node->pages[pool]);
      sequence.pages[pool].push_back(node->pages[pool]);
    }
  }
  if (!chain.empty()) index_.move(sequence.node, chain.back());
  sequence.num_indexed = num_pages(sequence);
  sequence.num_computed = sequence.num_indexed * kPageSlots;
  release_passed(sequence, 0);
}

void KvCache::add_page(Sequence& sequence, std::uint64_t pools) {
  const std::int32_t page = sequence.num_indexed;
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    if ((pools >> pool & 1) == 0) release(sequence, pool, static_cast<std::size_t>(page));
  }
  sequence.num_computed += kPageSlots;
  index_page(sequence, page);
  release_passed(sequence, page * kPageSlots);
}

bool KvCache::copy_beginning(Sequence& sequence, std::vector<PageCopy>& copies) {
  attach(sequence);
  const std::int32_t page = sequence.num_indexed;
  const std::int32_t wanted = reusable_end(sequence) - sequence.num_computed;
  if (sequence.num_computed != page * kPageSlots || wanted < kMinCopied) return false;
  auto tokens = tokens_of_page(sequence, page);
  tokens = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(wanted)));
  const PrefixIndex::Beginning found = index_.longest_beginning(*sequence.node, tokens, has_state_);
  const std::int32_t length = found.length;
  if (length < kMinCopied) return false;
  for (const std::int32_t number : found.node->pages) {
    if (number == kNoPage) return false;
  }
  // The source must not be taken back for the copy of itself.
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) pools_[pool].pages.share(found.node->pages[pool]);
  index_.touch(*found.node);
  const bool room = grow(sequence, sequence.num_computed + length) >= sequence.num_computed + length;
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    if (room) {
      copies.push_back({pool, found.node->pages[pool], sequence.pages[pool][static_cast<std::size_t>(page)]});
    }
    pools_[pool].pages.release(found.node->pages[pool]);
  }
  if (!room) return false;
  const std::int32_t before = sequence.num_computed;
  sequence.num_computed += length;
  count_reused(sequence, before);
  return true;
}

void KvCache::forget_beginning(Sequence& sequence) {
  const std::int32_t copied = sequence.num_computed - sequence.num_indexed * kPageSlots;
  sequence.num_computed -= copied;
  sequence.num_reused -= copied;
  sequence.num_seen -= copied;
  release_unused(sequence);
}

bool KvCache::has_room(const Sequence& sequence, std::int32_t positions) const {
  for (const KvPool& pool : pools_) {
    std::int32_t needed = pages_for(positions) - num_pages(sequence);
    // A window moves on: no more than what it spans is held at once.
    if (pool.window != 0) needed = std::min(needed, window_pages(pool.window));
    if (needed > pool.pages.num_free() + pool.pages.num_idle()) return false;
  }
  return true;
}

/// A free page, or the idle one that was not used for longest.
std::optional<std::int32_t> KvCache::allocate(std::size_t pool) {
  auto page = pools_[pool].pages.allocate();
  while (!page && index_.evict(pool)) page = pools_[pool].pages.allocate();
  return page;
}

std::int32_t KvCache::grow(Sequence& sequence, std::int32_t positions) {
  attach(sequence);
  const auto needed = static_cast<std::size_t>(pages_for(positions));
  for (std::size_t have = sequence.pages.front().size(); have < needed; ++have) {
    std::size_t pool = 0;
    for (; pool < pools_.size(); ++pool) {
      const auto page = pools_[pool].window == kStateWindow ? kNoPage : allocate(pool);
      if (!page) break;
      sequence.pages[pool].push_back(*page);
    }
    if (pool == pools_.size()) continue;
    while (pool-- > 0) {
      release(sequence, pool, have);
      sequence.pages[pool].pop_back();
    }
    break;
  }
  std::int32_t reached = std::min(positions, num_pages(sequence) * kPageSlots);
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    if (pools_[pool].window == kStateWindow) reached = grow_state(sequence, pool, reached);
  }
  return reached;
}

/// Gets states for a run up to `positions`; how far it can go with those that it gets.
std::int32_t KvCache::grow_state(Sequence& sequence, std::size_t pool, std::int32_t positions) {
  const std::int32_t first = pages_for(sequence.num_computed);  // pages from here on hold nothing yet
  const std::int32_t last = pages_for(positions) - 1;
  if (last < first) return positions;
  const std::int32_t last_full = positions / kPageSlots - 1;
  std::vector<std::int32_t>& table = sequence.pages[pool];
  const auto get = [&](std::int32_t page) {
    std::int32_t& number = table[static_cast<std::size_t>(page)];
    if (number == kNoPage) number = allocate(pool).value_or(kNoPage);
    return number != kNoPage;
  };
  // A longer run was meant to be.
  for (auto page = static_cast<std::size_t>(first); page < table.size(); ++page) {
    const auto number = static_cast<std::int32_t>(page);
    if (number != last && number != last_full && number != sequence.kept_state_page) release(sequence, pool, page);
  }
  if (!get(last)) return std::min(positions, first * kPageSlots);
  for (const std::int32_t page : {last_full, sequence.kept_state_page}) {
    if (page >= first && page < last) get(page);
  }
  return positions;
}

void KvCache::release(Sequence& sequence, std::size_t pool, std::size_t page) {
  std::int32_t& number = sequence.pages[pool][page];
  if (number != kNoPage) pools_[pool].pages.release(number);
  number = kNoPage;
}

/// Page `page` of the sequence, whose predecessors are all in the index, enters it; where the same tokens are there
/// already, their page takes its place: its bits are the same.
void KvCache::index_page(Sequence& sequence, std::int32_t page) {
  const auto tokens = tokens_of_page(sequence, page);
  std::vector<std::int32_t> numbers;
  for (const auto& table : sequence.pages) numbers.push_back(table[static_cast<std::size_t>(page)]);
  PrefixIndex::Node* node = index_.child(*sequence.node, tokens);
  if (!node) {
    // A page that was not full and that this one continues is of no more use.
    const PrefixIndex::Beginning begin = index_.longest_beginning(*sequence.node, tokens);
    node = index_.add(*sequence.node, tokens, numbers);
    if (begin.node && begin.length == static_cast<std::int32_t>(begin.node->tokens.size()) && begin.node->users == 0) {
      index_.remove(*begin.node);
    }
  } else {
    for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
      std::int32_t& kept = node->pages[pool];
      if (kept == kNoPage && numbers[pool] != kNoPage) {  // taken back since
        pools_[pool].pages.keep(numbers[pool]);
        kept = numbers[pool];
      } else if (kept != numbers[pool] && numbers[pool] != kNoPage) {
        pools_[pool].pages.share(kept);
        pools_[pool].pages.release(numbers[pool]);
        sequence.pages[pool][static_cast<std::size_t>(page)] = kept;
      }
    }
  }
  index_.move(sequence.node, node);
  ++sequence.num_indexed;
}

void KvCache::advance(Sequence& sequence) {
  attach(sequence);
  sequence.num_seen = std::max(sequence.num_seen, sequence.num_computed);
  const std::int32_t from = sequence.num_indexed * kPageSlots;
  while ((sequence.num_indexed + 1) * kPageSlots <= sequence.num_computed) index_page(sequence, sequence.num_indexed);
  release_passed(sequence, from);
}

/// Lets go of pages that the next row does not see; those that a row at `from` did not see are gone already.
void KvCache::release_passed(Sequence& sequence, std::int32_t from) {
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    const std::int32_t end = first_visible_page(pool, sequence.num_computed);
    for (std::int32_t page = first_visible_page(pool, from); page < end; ++page) {
      release(sequence, pool, static_cast<std::size_t>(page));
    }
  }
}

void KvCache::release_unused(Sequence& sequence) {
  const auto needed = static_cast<std::size_t>(pages_for(sequence.num_computed));
  for (std::size_t pool = 0; pool < sequence.pages.size(); ++pool) {
    auto& table = sequence.pages[pool];
    for (; table.size() > needed; table.pop_back()) release(sequence, pool, table.size() - 1);
  }
}

void KvCache::retire(Sequence& sequence) {
  if (sequence.node) {
    const std::int32_t first = sequence.num_indexed * kPageSlots;
    if (sequence.num_computed - first >= kMinCopied) {
      // Only the computed tokens: the last one chosen has no K and V yet.
      sequence.tokens.resize(static_cast<std::size_t>(sequence.num_computed));
      const auto tokens = tokens_of_page(sequence, sequence.num_indexed);
      const PrefixIndex::Beginning begin = index_.longest_beginning(*sequence.node, tokens, has_state_);
      if (begin.length < static_cast<std::int32_t>(tokens.size())) index_page(sequence, sequence.num_indexed);
    }
    index_.touch(*sequence.node);
  }
  drop(sequence);
}

void KvCache::drop_pool(Sequence& sequence, std::size_t pool) {
  for (std::size_t page = 0; page < sequence.pages[pool].size(); ++page) release(sequence, pool, page);
}

void KvCache::drop(Sequence& sequence) {
  sequence.num_computed = 0;
  sequence.num_indexed = 0;
  release_unused(sequence);
  if (sequence.node) index_.leave(sequence.node);
}

}  // namespace sterna
