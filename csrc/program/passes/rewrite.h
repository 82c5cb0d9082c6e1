/// What the passes share: who makes a value, who reads it, and how nodes and values are taken out.
#pragma once

#include <vector>

#include "program/program.h"

namespace sterna {

/// Producers and readers of the values of one function, as it was when this was made.
class Uses {
 public:
  Uses(const Program& program, const Function& function);

  /// The node that computes the value, or null for inputs and weights.
  const Node* producer(ValueId id) const;
  /// Its place in the function, or -1.
  int producer_index(ValueId id) const { return producers_[static_cast<std::size_t>(id)]; }
  /// Nodes that read the value, one entry per operand.
  const std::vector<int>& readers(ValueId id) const { return readers_[static_cast<std::size_t>(id)]; }
  /// Read by one operand only, and not returned.
  bool is_read_once(ValueId id) const { return readers(id).size() == 1 && !returned_[static_cast<std::size_t>(id)]; }
  bool is_returned(ValueId id) const { return returned_[static_cast<std::size_t>(id)]; }

 private:
  const Function& function_;
  std::vector<int> producers_;
  std::vector<std::vector<int>> readers_;
  std::vector<bool> returned_;
};

/// Takes out the nodes marked true.
void erase_nodes(Function& function, const std::vector<bool>& erased);

/// Replaces the operand of a role.
void set_input(Node& node, std::string_view role, ValueId value);

/// Takes out results that no node computes any more, and numbers the others anew.
void drop_unused_results(Program& program);

}  // namespace sterna
