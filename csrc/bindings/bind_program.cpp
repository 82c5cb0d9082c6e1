/// Programs in Python: the builder that the tracer drives, inspection for the interpreter, text and passes.
#include <pybind11/stl.h>

#include <memory>

#include "base/error.h"
#include "bindings/bindings.h"
#include "program/builder.h"
#include "program/op_table.h"
#include "program/passes/passes.h"
#include "program/passes/split_layers.h"
#include "program/program.h"
#include "program/rope.h"
#include "program/text.h"

namespace py = pybind11;

namespace sterna::bindings {

namespace {

/// A shape as Python sees it: integers, "T" and "L".
py::tuple to_python(const Shape& shape) {
  py::tuple result(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i].is_constant()) {
      result[i] = shape[i].size;
    } else {
      result[i] = shape[i].size == Dim::kTokens ? "T" : "L";
    }
  }
  return result;
}

Shape shape_from_python(const py::sequence& extents) {
  Shape shape;
  for (const py::handle extent : extents) {
    if (py::isinstance<py::str>(extent)) {
      const std::string name = extent.cast<std::string>();
      if (name != "T" && name != "L") throw ArgumentError("program: no run-time dimension " + name);
      shape.push_back({name == "T" ? Dim::kTokens : Dim::kOutputs});
    } else {
      const std::int64_t size = extent.cast<std::int64_t>();
      if (size < 1) throw ArgumentError("program: extent " + std::to_string(size) + " is not positive");
      shape.push_back({size});
    }
  }
  return shape;
}

FormatId format_from_python(const std::string& name) {
  const Format* format = find_format(name);
  if (format == nullptr) throw ArgumentError("program: no format " + name);
  return format->id;
}

py::object format_of(const Value& value) {
  if (value.kind != ValueKind::kWeight) return py::none();
  const Format* format = find_format(static_cast<std::uint32_t>(value.format));
  return format == nullptr ? py::object(py::none()) : py::object(py::str(std::string(format->name)));
}

const char* kind_of(const Value& value) {
  switch (value.kind) {
    case ValueKind::kInput:
      return "input";
    case ValueKind::kWeight:
      return "weight";
    case ValueKind::kNode:
      return "node";
  }
  return "";
}

std::vector<ValueId> emit(ProgramBuilder& builder, const std::string& op, const std::string& name,
                          const std::vector<std::pair<std::string, ValueId>>& inputs, Attributes attributes,
                          const std::string& source) {
  Node node{op, name, {}, {}, std::move(attributes), source};
  for (const auto& [role, value] : inputs) node.inputs.push_back({role, value});
  return builder.emit(std::move(node));
}

Program fused(const Program& program, const std::optional<std::vector<std::string>>& passes) {
  const GilRelease released;
  Program result = program;
  if (!passes) {
    fuse(result);
  } else {
    for (const std::string& name : *passes) run_pass(result, name);
  }
  return result;
}

}  // namespace

void bind_program(py::module_& m) {
  py::class_<Value>(m, "ProgramValue", "A value of a Program: an input, a weight, or the result of a node.")
      .def_readonly("name", &Value::name)
      .def_property_readonly("kind", &kind_of)
      .def_property_readonly("shape", [](const Value& value) { return to_python(value.shape); })
      .def_property_readonly("format", &format_of);

  py::class_<Node>(m, "ProgramNode", "One op of a Program with its operands, attributes and source line.")
      .def_readonly("op", &Node::op)
      .def_readonly("name", &Node::name)
      .def_property_readonly("inputs",
                             [](const Node& node) {
                               py::list inputs;
                               for (const Operand& operand : node.inputs) {
                                 inputs.append(py::make_tuple(operand.role, operand.value));
                               }
                               return inputs;
                             })
      .def_readonly("outputs", &Node::outputs)
      .def_readonly("attributes", &Node::attributes)
      .def_readonly("source", &Node::source);

  py::class_<KvSlot>(m, "KvSlot", "What one layer keeps in the KV cache, per token.")
      .def_readonly("layer", &KvSlot::layer)
      .def_readonly("num_kv_heads", &KvSlot::num_kv_heads)
      .def_readonly("head_dim", &KvSlot::head_dim)
      .def_readonly("value_head_dim", &KvSlot::value_head_dim)
      .def_readonly("latent", &KvSlot::latent);

  py::class_<StateSlot>(m, "StateSlot", "What a recurrent op of a layer keeps of a sequence: a matrix of floats.")
      .def_readonly("layer", &StateSlot::layer)
      .def_readonly("op", &StateSlot::op)
      .def_readonly("rows", &StateSlot::rows)
      .def_readonly("columns", &StateSlot::columns);

  py::class_<Program, std::shared_ptr<Program>>(m, "Program", "What a model computes: SSA values and named nodes.")
      .def_property_readonly("functions",
                             [](const Program& program) {
                               std::vector<std::string> names;
                               for (const Function& function : program.functions) names.push_back(function.name);
                               return names;
                             })
      .def(
          "nodes", [](const Program& program, const std::string& function) { return program.function(function).nodes; },
          py::arg("function") = "logits", "The nodes of a function, in execution order.")
      .def(
          "outputs",
          [](const Program& program, const std::string& function) { return program.function(function).outputs; },
          py::arg("function") = "logits", "The values that a function returns.")
      .def_property_readonly("values", [](const Program& program) { return program.values; })
      .def_property_readonly("longrope_context", &longrope_context)
      .def_property_readonly("kv_slots", [](const Program& program) { return program.kv_slots; })
      .def_property_readonly("state_slots", [](const Program& program) { return program.state_slots; })
      .def(
          "text", [](const Program& program) { return to_text(program); }, py::call_guard<GilRelease>(),
          "The text form; Program.parse reads it back.")
      .def_static(
          "parse", [](const std::string& text) { return parse_program(text); }, py::arg("text"),
          py::call_guard<GilRelease>(), "The program of a text. Raises ArgumentError with line and column.")
      .def("fuse", &fused, py::arg("passes") = py::none(),
           "A new program after the named passes, in their order, or after all of them in the fixed order.")
      .def_property_readonly("num_layers", &num_layers)
      .def("split_layers", &split_layers, py::arg("first_layer"), py::call_guard<GilRelease>(),
           "The parts before and from that layer on, each to be fused and compiled on its own. Raises ArgumentError, "
           "and "
           "UnsupportedModelError where the program cannot be cut there.")
      .def_property_readonly_static("passes",
                                    [](const py::object&) {
                                      py::list names;
                                      for (const Pass& pass : all_passes()) names.append(std::string(pass.name));
                                      return names;
                                    })
      .def("__repr__", [](const Program& program) {
        std::size_t nodes = 0;
        for (const Function& function : program.functions) nodes += function.nodes.size();
        return "<Program of " + std::to_string(nodes) + " nodes>";
      });

  py::class_<ProgramBuilder>(m, "ProgramBuilder", "Builds a Program node by node; each is checked as it comes.")
      .def(py::init<>())
      .def(
          "add_input",
          [](ProgramBuilder& builder, const std::string& name, const py::sequence& shape) {
            return builder.add_input(name, shape_from_python(shape));
          },
          py::arg("name"), py::arg("shape"), "An array of the batch; gives its id.")
      .def(
          "add_weight",
          [](ProgramBuilder& builder, const std::string& name, const py::sequence& shape, const std::string& format) {
            return builder.add_weight(name, shape_from_python(shape), format_from_python(format));
          },
          py::arg("name"), py::arg("shape"), py::arg("format"), "A tensor of the file, rows first; gives its id.")
      .def("begin_function", &ProgramBuilder::begin_function, py::arg("name"))
      .def("emit", &emit, py::arg("op"), py::arg("name"), py::arg("inputs"), py::arg("attributes"), py::arg("source"),
           "Appends a node; gives the ids of its results. Raises ArgumentError when the op table forbids it.")
      .def("set_outputs", &ProgramBuilder::set_outputs, py::arg("outputs"))
      .def(
          "shape",
          [](const ProgramBuilder& builder, ValueId id) {
            if (id < 0 || static_cast<std::size_t>(id) >= builder.program().values.size()) {
              throw ArgumentError("program: no value " + std::to_string(id));
            }
            return to_python(builder.program().value(id).shape);
          },
          py::arg("value"))
      .def("finish", &ProgramBuilder::finish, "The program, checked as a whole; the builder is empty afterwards.");

  m.def(
      "rope_inverse_frequencies",
      [](const Node& node, const std::string& prefix, const std::vector<float>& factors) {
        const RopeSpec spec = rope_spec(node, prefix);
        if (!factors.empty() && factors.size() != static_cast<std::size_t>(spec.rotary_dim / 2)) {
          throw ArgumentError("rope " + node.name + ": " + std::to_string(factors.size()) + " factors");
        }
        return inverse_frequencies(spec, factors);
      },
      py::arg("node"), py::arg("prefix"), py::arg("factors"),
      "Angle per position of each pair that the rope node turns; prefix \"rope.\" for attention with rope folded in.");
}

}  // namespace sterna::bindings
