/// fold_glu: a gated activation moves into the linear that computes gate and up together.
#include "program/passes/passes.h"
#include "program/passes/rewrite.h"

namespace sterna {

void fold_glu(Program& program) {
  for (Function& function : program.functions) {
    const Uses uses(program, function);
    std::vector<bool> erased(function.nodes.size());
    for (Node& node : function.nodes) {
      if (node.op != "glu") continue;
      const std::vector<ValueId> results = {node.input("gate"), node.input("up")};
      const Node* linear = uses.producer(results[0]);
      if (linear == nullptr || linear->op != "linear" || linear->outputs != results || linear->has("glu")) continue;
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
