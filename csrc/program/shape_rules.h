/// The shape rule of each op: checks the extents of a node's operands and gives the shapes of its results.
#pragma once

#include <vector>

#include "program/program.h"

namespace sterna {

std::vector<Shape> embed_shapes(const Program& program, const Node& node);
std::vector<Shape> linear_shapes(const Program& program, const Node& node);
std::vector<Shape> head_linear_shapes(const Program& program, const Node& node);
std::vector<Shape> unembed_shapes(const Program& program, const Node& node);
std::vector<Shape> rms_norm_shapes(const Program& program, const Node& node);
std::vector<Shape> layer_norm_shapes(const Program& program, const Node& node);
std::vector<Shape> rope_shapes(const Program& program, const Node& node);
std::vector<Shape> attention_shapes(const Program& program, const Node& node);
std::vector<Shape> lora_shapes(const Program& program, const Node& node);
std::vector<Shape> store_kv_shapes(const Program& program, const Node& node);
std::vector<Shape> glu_shapes(const Program& program, const Node& node);
std::vector<Shape> route_shapes(const Program& program, const Node& node);
std::vector<Shape> expert_glu_shapes(const Program& program, const Node& node);
std::vector<Shape> same_shapes(const Program& program, const Node& node);  // activation, scale
std::vector<Shape> clamp_shapes(const Program& program, const Node& node);
std::vector<Shape> short_conv_shapes(const Program& program, const Node& node);
std::vector<Shape> ssm_scan_shapes(const Program& program, const Node& node);
std::vector<Shape> delta_rule_shapes(const Program& program, const Node& node);
std::vector<Shape> binary_shapes(const Program& program, const Node& node);  // add, mul
std::vector<Shape> reshape_shapes(const Program& program, const Node& node);
std::vector<Shape> split_shapes(const Program& program, const Node& node);
std::vector<Shape> concat_shapes(const Program& program, const Node& node);
std::vector<Shape> take_rows_shapes(const Program& program, const Node& node);
std::vector<Shape> send_shapes(const Program& program, const Node& node);
std::vector<Shape> receive_shapes(const Program& program, const Node& node);
std::vector<Shape> pool_shapes(const Program& program, const Node& node);

}  // namespace sterna
