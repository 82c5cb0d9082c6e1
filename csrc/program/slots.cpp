#include "program/slots.h"

namespace sterna {

bool stores_kv(const Node& node) {
  return node.op == "store_kv" || (node.op == "attention" && node.input("k") != kNoValue);
}

std::unordered_set<std::int64_t> cross_layers(const Program& program) {
  std::unordered_set<std::int64_t> layers;
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      if (node.op == "store_kv") layers.insert(node.integer("layer"));
    }
  }
  return layers;
}

KvSlot kv_slot(const Program& program, const Node& node) {
  const Shape& k = program.value(node.input("k")).shape;
  const std::int64_t latent = node.has("latent") ? node.integer("latent") : 0;
  if (latent != 0) return {node.integer("layer"), k.at(1).size, k.at(2).size, latent, true};
  const Shape& v = program.value(node.input("v")).shape;
  return {node.integer("layer"), k.at(1).size, k.at(2).size, v.at(2).size, false};
}

bool is_recurrent(std::string_view op) { return op == "short_conv" || op == "ssm_scan" || op == "delta_rule"; }

StateSlot state_slot(const Program& program, const Node& node) {
  StateSlot slot{node.integer("layer"), node.op, 0, 0};
  const auto extent = [&](const char* role, std::size_t i) { return program.value(node.input(role)).shape.at(i).size; };
  if (node.op == "short_conv") {  // the inputs of the tokens before, oldest first
    slot.rows = extent("w", 1) - 1;
    slot.columns = extent("x", 1);
  } else if (node.op == "ssm_scan") {
    slot.rows = extent("x", 1) * extent("x", 2);
    slot.columns = extent("b", 2);
  } else {
    slot.rows = extent("v", 1) * extent("k", 2);
    slot.columns = extent("v", 2);
  }
  return slot;
}

}  // namespace sterna
