/// merge_linears: linears that read the same rows become one node, so that the rows are prepared once.
#include <map>
#include <tuple>

#include "program/passes/passes.h"
#include "program/passes/rewrite.h"

namespace sterna {

namespace {

bool is_plain(const Node& node) {
  return node.op == "linear" && node.input("norm") == kNoValue && node.input("residual") == kNoValue &&
         !node.has("glu");
}

/// Operands of two linears of the same x: x, then all weights, then all biases.
std::vector<Operand> joined(const Node& a, const Node& b) {
  std::vector<Operand> inputs = {{"x", a.input("x")}};
  for (const char* role : {"w", "bias"}) {
    for (const Node* node : {&a, &b}) {
      for (const ValueId id : node->input_list(role)) inputs.push_back({role, id});
    }
  }
  return inputs;
}

}  // namespace

void merge_linears(Program& program) {
  for (Function& function : program.functions) {
    // By input, activation rule, and whether there are biases: the place of the first such linear.
    std::map<std::tuple<ValueId, std::string, bool>, std::size_t> first;
    std::vector<bool> erased(function.nodes.size());
    for (std::size_t i = 0; i < function.nodes.size(); ++i) {
      Node& node = function.nodes[i];
      if (!is_plain(node)) continue;
      const auto key = std::tuple(node.input("x"), node.text("activation"), node.input("bias") != kNoValue);
      const auto [found, is_new] = first.try_emplace(key, i);
      if (is_new) continue;
      Node& into = function.nodes[found->second];
      into.inputs = joined(into, node);
      into.outputs.insert(into.outputs.end(), node.outputs.begin(), node.outputs.end());
      erased[i] = true;
    }
    erase_nodes(function, erased);
  }
}

}  // namespace sterna
