/// fold_rope: head norms and rotary positions of q and k move into the attention that reads them.
#include "program/passes/passes.h"
#include "program/passes/rewrite.h"

namespace sterna {

namespace {

/// The producers of an attention's q and k, where both are this op and nobody else reads them.
struct Pair {
  const Node* q = nullptr;
  const Node* k = nullptr;
  explicit operator bool() const { return q != nullptr; }
};

Pair producers(const Uses& uses, const Node& attention, std::string_view op) {
  const auto find = [&](std::string_view role) -> const Node* {
    const ValueId id = attention.input(role);
    if (id == kNoValue) return nullptr;  // keys and values of another layer
    const Node* node = uses.producer(id);
    return node != nullptr && node->op == op && uses.is_read_once(id) ? node : nullptr;
  };
  const Pair pair = {find("q"), find("k")};
  return pair.q != nullptr && pair.k != nullptr && pair.q->attributes == pair.k->attributes ? pair : Pair();
}

void take_over(const Uses& uses, Node& attention, const Pair& pair, std::vector<bool>& erased) {
  for (const Node* node : {pair.q, pair.k}) {
    erased[static_cast<std::size_t>(uses.producer_index(node->outputs[0]))] = true;
  }
  set_input(attention, "q", pair.q->input("x"));
  set_input(attention, "k", pair.k->input("x"));
}

void fold_ropes(const Uses& uses, Node& attention, std::vector<bool>& erased) {
  // A norm that is folded in already comes before the rope, so that no other rope may follow it.
  if (attention.input("positions") != kNoValue || attention.input("q_norm") != kNoValue) return;
  const Pair ropes = producers(uses, attention, "rope");
  if (!ropes) return;
  constexpr const char* kRoles[] = {"positions", "factors", "long_factors"};
  for (const char* role : kRoles) {
    if (ropes.q->input(role) != ropes.k->input(role)) return;
  }
  for (const char* role : kRoles) {
    if (const ValueId id = ropes.q->input(role); id != kNoValue) attention.inputs.push_back({role, id});
  }
  for (const auto& [name, value] : ropes.q->attributes) attention.attributes["rope." + name] = value;
  take_over(uses, attention, ropes, erased);
}

void fold_head_norms(const Uses& uses, Node& attention, std::vector<bool>& erased) {
  if (attention.input("q_norm") != kNoValue) return;
  const Pair norms = producers(uses, attention, "rms_norm");
  if (!norms || norms.q->input("w") == kNoValue || norms.k->input("w") == kNoValue) return;
  attention.inputs.push_back({"q_norm", norms.q->input("w")});
  attention.inputs.push_back({"k_norm", norms.k->input("w")});
  attention.attributes["eps"] = norms.q->attributes.find("eps")->second;
  take_over(uses, attention, norms, erased);
}

}  // namespace

void fold_rope(Program& program) {
  for (Function& function : program.functions) {
    const Uses uses(program, function);
    std::vector<bool> erased(function.nodes.size());
    for (Node& node : function.nodes) {
      if (node.op != "attention") continue;
      fold_ropes(uses, node, erased);
      fold_head_norms(uses, node, erased);
    }
    erase_nodes(function, erased);
  }
}

}  // namespace sterna
