/// fold_glu: a gated activation moves into the linear that computes gate and up together.
#include "program/passes/passes.h"
#include "program/passes/rewrite.h"
#include "quant/format.h"

namespace sterna {
namespace {

/// Decides how a weight's activations are rounded: gate and up of one step share them.
ScaleKind scale_kind(const Program& program, ValueId weight) {
  return find_format(static_cast<std::uint32_t>(program.value(weight).format))->scales;
}

}  // namespace

void fold_glu(Program& program) {
  for (Function& function : program.functions) {
    const Uses uses(program, function);
    std::vector<bool> erased(function.nodes.size());
    for (Node& node : function.nodes) {
      if (node.op != "glu") continue;
      const std::vector<ValueId> results = {node.input("gate"), node.input("up")};
      const Node* linear = uses.producer(results[0]);
      if (linear == nullptr || linear->op != "linear" || linear->outputs != results || linear->has("glu")) continue;
      const std::vector<ValueId> weights = linear->input_list("w");
      if (scale_kind(program, weights[0]) != scale_kind(program, weights[1])) continue;
      if (!uses.is_read_once(results[0]) || !uses.is_read_once(results[1])) continue;
      Node folded = *linear;
      folded.attributes["glu"] = node.attributes.find("activation")->second;
      folded.name = node.name;
      folded.outputs = node.outputs;
      erased[static_cast<std::size_t>(uses.producer_index(results[0]))] = true;
      node = std::move(folded);
    }
    erase_nodes(function, erased);
  }
}

}  // namespace sterna
