/// fold_norm: an RMS norm moves into the linear that is its only reader.
#include "program/passes/passes.h"
#include "program/passes/rewrite.h"

namespace sterna {

void fold_norm(Program& program) {
  for (Function& function : program.functions) {
    const Uses uses(program, function);
    std::vector<bool> erased(function.nodes.size());
    for (std::size_t i = 0; i < function.nodes.size(); ++i) {
      const Node& norm = function.nodes[i];
      if (norm.op != "rms_norm" || norm.input("w") == kNoValue || !uses.is_read_once(norm.outputs[0])) continue;
      Node& reader = function.nodes[static_cast<std::size_t>(uses.readers(norm.outputs[0])[0])];
      const bool takes_norm = reader.op == "linear" || reader.op == "unembed";
      if (!takes_norm || reader.input("norm") != kNoValue || reader.input("x") != norm.outputs[0]) continue;
      set_input(reader, "x", norm.input("x"));
      reader.inputs.push_back({"norm", norm.input("w")});
      reader.attributes["eps"] = norm.attributes.find("eps")->second;
      erased[i] = true;
    }
    erase_nodes(function, erased);
  }
}

}  // namespace sterna
