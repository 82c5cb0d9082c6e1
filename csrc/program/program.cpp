#include "program/program.h"

#include <algorithm>

#include "base/error.h"

namespace sterna {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    if (shape[i].size == Dim::kTokens) {
      text += "T";
    } else if (shape[i].size == Dim::kOutputs) {
      text += "L";
    } else {
      text += std::to_string(shape[i].size);
    }
  }
  return text + "]";
}

ValueId Node::input(std::string_view role) const {
  for (const Operand& operand : inputs) {
    if (operand.role == role) return operand.value;
  }
  return kNoValue;
}

std::vector<ValueId> Node::input_list(std::string_view role) const {
  std::vector<ValueId> ids;
  for (const Operand& operand : inputs) {
    if (operand.role == role) ids.push_back(operand.value);
  }
  return ids;
}

namespace {

template <class T>
const T& attribute(const Node& node, std::string_view name, const char* type) {
  const auto found = node.attributes.find(name);
  if (found == node.attributes.end()) {
    throw ArgumentError(node.op + " " + node.name + ": no attribute " + std::string(name));
  }
  const T* value = std::get_if<T>(&found->second);
  if (value == nullptr) {
    throw ArgumentError(node.op + " " + node.name + ": attribute " + std::string(name) + " is not " + type);
  }
  return *value;
}

}  // namespace

std::int64_t Node::integer(std::string_view name) const { return attribute<std::int64_t>(*this, name, "an integer"); }
double Node::number(std::string_view name) const { return attribute<double>(*this, name, "a number"); }
bool Node::flag(std::string_view name) const { return attribute<bool>(*this, name, "true or false"); }
const std::string& Node::text(std::string_view name) const { return attribute<std::string>(*this, name, "a string"); }

Function& Program::function(std::string_view name) {
  const auto found = std::ranges::find(functions, name, &Function::name);
  if (found == functions.end()) throw ArgumentError("program: no function " + std::string(name));
  return *found;
}

const Function& Program::function(std::string_view name) const { return const_cast<Program*>(this)->function(name); }

ValueId Program::find(ValueKind kind, std::string_view name) const {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i].kind == kind && values[i].name == name) return static_cast<ValueId>(i);
  }
  return kNoValue;
}

}  // namespace sterna
