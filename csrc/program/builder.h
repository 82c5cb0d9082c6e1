/// Builds a Program node by node, checking each against the op table as it comes. The tracer and the text parser share
/// it.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "program/program.h"

namespace sterna {

class ProgramBuilder {
 public:
  /// An array of the batch. Throws ArgumentError for a name that is taken or malformed.
  ValueId add_input(const std::string& name, const Shape& shape);
  /// A tensor of the file: constant extents, rows first.
  ValueId add_weight(const std::string& name, const Shape& shape, FormatId format);
  /// Nodes emitted from here on belong to this function; the first call may be left out for "logits".
  void begin_function(const std::string& name);
  /// Appends the node and gives its results, named as the node (further ones with ".1", ".2") or as `names` says. The
  /// node's own `outputs` are ignored. Throws ArgumentError.
  std::vector<ValueId> emit(Node node, const std::vector<std::string>& names = {});
  /// What the current function returns.
  void set_outputs(const std::vector<ValueId>& outputs);
  /// The program so far.
  const Program& program() const { return program_; }
  /// The program, after validate(); the builder is empty afterwards.
  Program finish();

 private:
  Function& current();
  ValueId add_value(Value value);

  Program program_;
  std::unordered_set<std::string> weight_names_;
  std::unordered_set<std::string> names_;  // of inputs and results
};

}  // namespace sterna
