"""jinja2's code generator with four changes: literals are `Text`, containers are measured, loops and macros are
charged, and nothing is computed at compile time.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from sterna.chat.budget import current


class TrackingCodeGenerator(CodeGenerator):
    """Generated code finds what it needs on `environment`: see `ChatEnvironment`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._literals: dict[str, str] = {}

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        current().step()
        return super().visit(node, *args, **kwargs)

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # noqa: N802
        for loop in list(node.find_all(nodes.For)):
            counter = nodes.EnvironmentAttribute("steps", lineno=loop.lineno, environment=self.environment)
            loop.iter = nodes.Call(
                counter, [loop.iter], [], None, None, lineno=loop.lineno, environment=self.environment
            )
        super().visit_Template(node, frame)
        # Functions look these up when they run, so the end of the module is early enough.
        for name in ("Macro", "LoopContext", "Namespace"):
            self.writeline(f"{name} = environment.runtime_classes[{name!r}]")
        for text, name in self._literals.items():
            self.writeline(f"{name} = environment.literal({text!r})")

    def _literal(self, text: str) -> str:
        return self._literals.setdefault(text, f"k_{len(self._literals)}")

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(self._literal(value))
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:  # noqa: N802
        self.write(self._literal(node.data))

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:  # noqa: N802
        for child in node.nodes:
            self.start_write(frame, child)
            if isinstance(child, nodes.TemplateData):
                self.visit(child, frame)
            else:
                self._call("output", [child], frame)
            self.end_write(frame)

    def _call(self, method: str, arguments: list[Any], frame: Frame) -> None:
        self.write(f"environment.{method}(")
        for argument in arguments:
            if argument is None:
                self.write("None")
            else:
                self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._call("make_tuple", node.items, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._call("make_list", node.items, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.make_dict((")
        for pair in node.items:
            self.write("(")
            self.visit(pair.key, frame)
            self.write(", ")
            self.visit(pair.value, frame)
            self.write("), ")
        self.write("))")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self._call("join_values", node.nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(environment.tick() or ")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self._call("cut", [node.node, node.arg.start, node.arg.stop, node.arg.step], frame)
        else:
            super().visit_Getitem(node, frame)
