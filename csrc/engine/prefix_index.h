/// Which pages hold the K and V of which tokens: a tree of pages, each below the page with the tokens before it.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/pages.h"

namespace sterna {

/// A radix tree whose edges are pages of 64 tokens; only a leaf may have fewer. Beside the tokens, K and V depend on
/// what the context key stands for (an adapter, say): every key has a root of its own, the empty one that of plain
/// requests. The index keeps its pages, so that they outlive their sequences until others need them: least recently
/// used first. Not thread-safe.
class PrefixIndex {
 public:
  struct Node {
    Node* parent = nullptr;
    std::string context_key;           // of a root
    std::vector<std::int32_t> tokens;  // [1..64]; of a root none
    std::vector<std::int32_t> pages;   // by pool; kNoPage where only the window's part was taken back
    std::vector<std::unique_ptr<Node>> children;
    std::int32_t users = 0;           // sequences whose last indexed page it is
    std::list<Node*>::iterator used;  // its place in the order of use
  };

  explicit PrefixIndex(std::vector<KvPool>& pools) : pools_(pools) {}
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  /// Nodes with users stay. Counts one for the caller.
  Node* enter(const std::string& context_key);
  void move(Node*& from, Node* to);
  void leave(Node*& node);

  /// The child whose page holds exactly these 64 tokens, or null.
  Node* child(const Node& parent, std::span<const std::int32_t> tokens) const;
  /// The nodes of the whole pages that these tokens begin with, as far as they are there.
  std::vector<Node*> chain(const std::string& context_key, std::span<const std::int32_t> tokens) const;
  struct Beginning {
    Node* node = nullptr;
    std::int32_t length = 0;
  };
  /// The child that shares most leading tokens; with `whole` only one all of whose tokens are shared.
  Beginning longest_beginning(const Node& parent, std::span<const std::int32_t> tokens, bool whole = false) const;

  /// A child with these tokens and pages, which the index keeps from now on.
  Node* add(Node& parent, std::span<const std::int32_t> tokens, std::span<const std::int32_t> pages);
  /// A leaf that no sequence uses; its pages are let go.
  void remove(Node& leaf);

  /// The chain up to `node` is the most recently used one.
  void touch(Node& node);
  /// Gives back an idle page of this pool, the least recently used; false when there is none.
  bool evict(std::size_t pool);
  void clear();

  std::size_t num_nodes() const { return order_.size(); }

 private:
  void let_go(Node& node, std::size_t pool);
  void remove_if_bare(Node* node);

  std::vector<KvPool>& pools_;
  std::map<std::string, std::unique_ptr<Node>> roots_;
  std::list<Node*> order_;  // of use, least recently first; a node before those above it
};

}  // namespace sterna
