#include "program/text.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"
#include "program/op_table.h"

namespace sterna {

namespace {

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("_./-:+").find(c) != std::string_view::npos;
}

std::string quoted(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

std::string plain_or_quoted(std::string_view name) {
  return std::ranges::all_of(name, is_plain) ? std::string(name) : quoted(name);
}

std::string reference(const Value& value) {
  return (value.kind == ValueKind::kWeight ? "@" : "%") + plain_or_quoted(value.name);
}

/// The shortest decimal that reads back as the same double; always with a point or an exponent.
std::string to_text(double number) {
  std::array<char, 32> digits;
  const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), number);
  std::string text(digits.data(), end);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string to_text(const Attribute& value) {
  if (const bool* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const std::int64_t* integer = std::get_if<std::int64_t>(&value)) return std::to_string(*integer);
  if (const double* number = std::get_if<double>(&value)) return to_text(*number);
  return quoted(std::get<std::string>(value));
}

std::string attributes_text(const Node& node) {
  const OpSpec* op = find_op(node.op);
  if (op == nullptr) fail(node, "there is no such op");
  std::string text;
  for (const AttributeSpec& spec : op->attributes) {
    const auto found = node.attributes.find(spec.name);
    if (found == node.attributes.end()) continue;
    if (spec.need == AttributeNeed::kDefault && found->second == spec.value) continue;
    text += (text.empty() ? " {" : ", ") + std::string(spec.name) + "=" + to_text(found->second);
  }
  return text.empty() ? text : text + "}";
}

std::string node_text(const Program& program, const Node& node) {
  std::string text = "  ";
  for (std::size_t i = 0; i < node.outputs.size(); ++i) {
    const Value& value = program.value(node.outputs[i]);
    text += (i == 0 ? "" : ", ") + reference(value) + " " + to_string(value.shape);
  }
  text += " = " + node.op + "(";
  for (std::size_t i = 0; i < node.inputs.size(); ++i) {
    text += (i == 0 ? "" : ", ") + node.inputs[i].role + "=" + reference(program.value(node.inputs[i].value));
  }
  text += ")" + attributes_text(node);
  if (!node.source.empty()) text += "  # " + node.source;
  return text + "\n";
}

}  // namespace

std::string to_text(const Program& program) {
  std::string text = "program 1\n";
  for (const Value& value : program.values) {
    if (value.kind == ValueKind::kInput) text += "input " + reference(value) + " " + to_string(value.shape) + "\n";
  }
  for (const Value& value : program.values) {
    if (value.kind != ValueKind::kWeight) continue;
    const Format* format = find_format(static_cast<std::uint32_t>(value.format));
    if (format == nullptr) throw ArgumentError("program: weight " + value.name + " has no format");
    text += "weight " + reference(value) + " " + to_string(value.shape) + " " + std::string(format->name) + "\n";
  }
  for (const KvSlot& slot : program.kv_slots) {
    text += "kv " + std::to_string(slot.layer) + ": " + std::to_string(slot.num_kv_heads) + " heads, " +
            std::to_string(slot.head_dim) + ", " + std::to_string(slot.value_head_dim) +
            (slot.latent ? ", latent\n" : "\n");
  }
  for (const StateSlot& slot : program.state_slots) {
    text += "state " + std::to_string(slot.layer) + ": " + slot.op + ", " + std::to_string(slot.rows) + ", " +
            std::to_string(slot.columns) + "\n";
  }
  for (const Function& function : program.functions) {
    text += "function " + plain_or_quoted(function.name) + "\n";
    for (const Node& node : function.nodes) text += node_text(program, node);
    text += "  return ";
    for (std::size_t i = 0; i < function.outputs.size(); ++i) {
      text += (i == 0 ? "" : ", ") + reference(program.value(function.outputs[i]));
    }
    text += "\n";
  }
  return text;
}

}  // namespace sterna
