/// fold_residual: an addition moves into the linear, the experts, or the norm, whose result it adds.
#include "program/passes/passes.h"
#include "program/passes/rewrite.h"

namespace sterna {

namespace {

/// The node that computes an operand of the addition and can take the other one in, or -1.
int foldable_node(const Program& program, const Uses& uses, const Node& add, ValueId operand, ValueId other) {
  const Node* node = uses.producer(operand);
  if (node == nullptr || !uses.is_read_once(operand) || program.value(other).kind != ValueKind::kNode) return -1;
  const bool is_linear = node->op == "linear" && node->input_list("w").size() == 1;
  if (!is_linear && node->op != "expert_glu" && node->op != "rms_norm") return -1;
  if (node->input("residual") != kNoValue || add.op != "add") return -1;
  return uses.producer_index(operand);
}

}  // namespace

void fold_residual(Program& program) {
  for (Function& function : program.functions) {
    const Uses uses(program, function);
    std::vector<bool> erased(function.nodes.size());
    for (Node& node : function.nodes) {
      if (node.op != "add") continue;
      // Addition commutes bit for bit, so that it may be either operand.
      ValueId other = node.input("a");
      int found = foldable_node(program, uses, node, node.input("b"), other);
      if (found < 0) {
        other = node.input("b");
        found = foldable_node(program, uses, node, node.input("a"), other);
      }
      if (found < 0) continue;
      Node folded = function.nodes[static_cast<std::size_t>(found)];
      folded.inputs.push_back({"residual", other});
      folded.name = node.name;
      folded.outputs = node.outputs;
      erased[static_cast<std::size_t>(found)] = true;
      node = std::move(folded);
    }
    erase_nodes(function, erased);
  }
}

}  // namespace sterna
