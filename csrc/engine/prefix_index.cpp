#include "engine/prefix_index.h"

#include <algorithm>

#include "engine/sequence.h"

namespace sterna {

PrefixIndex::Node* PrefixIndex::enter(const std::string& context_key) {
  std::unique_ptr<Node>& root = roots_[context_key];
  if (!root) {
    root = std::make_unique<Node>();
    root->context_key = context_key;
  }
  ++root->users;
  return root.get();
}

void PrefixIndex::move(Node*& from, Node* to) {
  ++to->users;
  leave(from);
  from = to;
}

void PrefixIndex::leave(Node*& node) {
  --node->users;
  remove_if_bare(node);
  node = nullptr;
}

PrefixIndex::Node* PrefixIndex::child(const Node& parent, std::span<const std::int32_t> tokens) const {
  for (const auto& node : parent.children) {
    if (std::equal(node->tokens.begin(), node->tokens.end(), tokens.begin(), tokens.end())) return node.get();
  }
  return nullptr;
}

std::vector<PrefixIndex::Node*> PrefixIndex::chain(const std::string& context_key,
                                                   std::span<const std::int32_t> tokens) const {
  std::vector<Node*> nodes;
  const auto root = roots_.find(context_key);
  if (root == roots_.end()) return nodes;
  const Node* at = root->second.get();
  for (; tokens.size() >= kPageSlots; tokens = tokens.subspan(kPageSlots)) {
    Node* next = child(*at, tokens.first(kPageSlots));
    if (!next) break;
    nodes.push_back(next);
    at = next;
  }
  return nodes;
}

PrefixIndex::Beginning PrefixIndex::longest_beginning(const Node& parent, std::span<const std::int32_t> tokens,
                                                      bool whole) const {
  Beginning best;
  for (const auto& node : parent.children) {
    const std::int32_t length = common_prefix(node->tokens, tokens);
    if (whole && length < static_cast<std::int32_t>(node->tokens.size())) continue;
    if (length > best.length) best = {node.get(), length};
  }
  return best;
}

PrefixIndex::Node* PrefixIndex::add(Node& parent, std::span<const std::int32_t> tokens,
                                    std::span<const std::int32_t> pages) {
  auto node = std::make_unique<Node>();
  node->parent = &parent;
  node->tokens.assign(tokens.begin(), tokens.end());
  node->pages.assign(pages.begin(), pages.end());
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    if (pages[pool] != kNoPage) pools_[pool].pages.keep(pages[pool]);
  }
  node->used = order_.insert(order_.end(), node.get());
  parent.children.push_back(std::move(node));
  return parent.children.back().get();
}

void PrefixIndex::let_go(Node& node, std::size_t pool) {
  if (node.pages[pool] != kNoPage) pools_[pool].pages.let_go(node.pages[pool]);
  node.pages[pool] = kNoPage;
}

void PrefixIndex::remove(Node& leaf) {
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) let_go(leaf, pool);
  order_.erase(leaf.used);
  Node* parent = leaf.parent;
  std::erase_if(parent->children, [&](const auto& node) { return node.get() == &leaf; });
  remove_if_bare(parent);
}

/// A node that leads nowhere and holds nothing, and those above it that are then the same.
void PrefixIndex::remove_if_bare(Node* node) {
  if (node->users > 0 || !node->children.empty()) return;
  if (!node->parent) {
    roots_.erase(roots_.find(node->context_key));
  } else if (std::all_of(node->pages.begin(), node->pages.end(), [](std::int32_t page) { return page == kNoPage; })) {
    remove(*node);
  }
}

void PrefixIndex::touch(Node& node) {
  for (Node* at = &node; at->parent; at = at->parent) order_.splice(order_.end(), order_, at->used);
}

bool PrefixIndex::evict(std::size_t pool) {
  const KvPool& from = pools_[pool];
  for (Node* node : order_) {
    if (!from.pages.is_idle(node->pages[pool])) continue;
    if (from.window != 0) {
      // A window ends where its chain does, so the chain's beginning goes first.
      while (node->parent->parent && from.pages.is_idle(node->parent->pages[pool])) node = node->parent;
      let_go(*node, pool);
      remove_if_bare(node);
      return true;
    }
    // Without its page of all positions a chain cannot be used beyond: only its end may go.
    if (!node->children.empty() || node->users > 0) continue;
    remove(*node);
    return true;
  }
  return false;
}

void PrefixIndex::clear() {
  for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
    while (evict(pool)) {
    }
  }
}

}  // namespace sterna
