"""`sterna inspect`: what is in a model file, and whether sterna can use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from sterna.cli import console
from sterna.cli.options import find_model, i2s_order_option, json_option
from sterna.errors import SternaError

if TYPE_CHECKING:
    from sterna._core import Gguf

_SHOWN_ITEMS = 8
_SHOWN_CHARACTERS = 100


@click.command()
@click.argument("model")
@click.option("--metadata", is_flag=True, help="All keys and values.")
@click.option("--tensors", is_flag=True, help="All tensors.")
@click.option("--template", is_flag=True, help="The chat template, whole.")
@i2s_order_option
@json_option
def command(model: str, metadata: bool, tensors: bool, template: bool, i2s_order: str, as_json: bool) -> None:
    """Show what is in MODEL's file: architecture, formats, sizes, vocabulary, chat template.

    Ternary tensors are read whole, for their codes and scales, and for signs of the order of I2_S. The last lines say
    whether sterna can use the file.
    """
    path = find_model(model).path
    from sterna._core import Gguf

    file = Gguf(path, i2s_order=i2s_order)
    source = file.find_string("tokenizer.chat_template")
    if template and not as_json:
        print(source if source is not None else "", end="")
        return
    report = _report(file, source, i2s_order)
    if metadata or as_json:
        report["metadata"] = {key: _shown(file, key) for key in file.keys()}  # noqa: SIM118 (a method, not a dict's)
    if tensors or as_json:
        report["tensors"] = [
            {"name": t.name, "shape": list(t.shape), "format": t.format, "bytes": t.bytes} for t in file.tensors
        ]
    if as_json:
        report["template"]["source"] = source
        console.print_json(report)
        return
    _print(report)


def _report(file: Gguf, template: str | None, i2s_order: str) -> dict[str, Any]:
    architecture = file.get("general.architecture")
    report: dict[str, Any] = {
        "file": {"path": file.path, "bytes": file.file_bytes, "version": file.version, "alignment": file.alignment},
        "model": {"architecture": architecture, "name": file.get("general.name")},
    }
    if len(file.files) > 1:
        report["file"]["files"] = file.files
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        report["model"][name] = file.get(f"{architecture}.{name}")
    for name in ("head_count", "head_count_kv"):
        value = file.get(f"{architecture}.attention.{name}")
        report["model"][name] = value if isinstance(value, int) or value is None else "by layer"
    report["model"]["parameters"] = sum(_elements(tensor.shape) for tensor in file.tensors)
    report["formats"] = _formats(file)
    tokens = "tokenizer.ggml.tokens"
    report["vocabulary"] = {
        "kind": file.get("tokenizer.ggml.model"),
        "pre": file.get("tokenizer.ggml.pre"),
        "tokens": file.array_length(tokens) if tokens in file else None,
    }
    report["template"] = {"characters": len(template) if template is not None else None}
    if template is not None:
        report["template"]["looks_for_in_messages"] = content_conditions(template)
    report["checks"] = {name: _check(check, file) for name, check in _CHECKS.items()}
    _add_ternary(report, file, i2s_order)
    return report


def _add_ternary(report: dict[str, Any], file: Gguf, i2s_order: str) -> None:
    from sterna.ternary import order_signs, scan_tensors, summarise

    scanned = scan_tensors(file)
    if not scanned:
        return
    report["ternary"] = summarise(scanned)
    faults = [fault for item in scanned if (fault := item.fault()) is not None]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    report["checks"]["ternary"] = f"{faults[0]}{more}" if faults else "ok"
    if not any(item.tensor.format.startswith("I2_S") for item in scanned):
        return
    report["i2s_order"] = {"assumed": f"{i2s_order} (the file does not say; --i2s-order overrides)"}
    signs = order_signs(file)
    if signs is None:
        report["i2s_order"]["weights_fit"] = "unknown: no matrix follows a norm"
        return
    figures = f"correlation with norms: x86 {signs.x86:.3f}, arm {signs.arm:.3f}, by chance {signs.noise:.3f}"
    report["i2s_order"]["weights_fit"] = f"{signs.fits or 'either'} ({figures})"
    if signs.fits not in (None, i2s_order):
        report["checks"]["i2s order"] = f"the weights look like {signs.fits}: try --i2s-order {signs.fits}"


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


def _formats(file: Gguf) -> list[dict[str, Any]]:
    found: dict[str, list[int]] = {}
    for tensor in file.tensors:
        entry = found.setdefault(tensor.format, [0, 0])
        entry[0] += 1
        entry[1] += tensor.bytes
    largest_first = sorted(found.items(), key=lambda item: -item[1][1])
    return [{"format": name, "tensors": count, "bytes": size} for name, (count, size) in largest_first]


def _shown(file: Gguf, key: str) -> Any:
    kind = file.type_of(key)
    if not kind.startswith("array"):
        return file.get(key)
    count = file.array_length(key)
    if kind == "array[string]":
        first = [file.string_array_at(key, i).decode("utf-8", "replace") for i in range(min(count, _SHOWN_ITEMS))]
    else:
        values = file.get(key)
        first = [] if values is None else [getattr(v, "item", lambda v=v: v)() for v in values[:_SHOWN_ITEMS]]
    return {"type": kind, "length": count, "first": first}


def content_conditions(source: str) -> list[str]:
    """Texts that a chat template compares with a message's content.

    A template can hide behaviour behind a phrase in the conversation; those of honest models look for their own markers
    only, such as `</think>`.
    """
    import jinja2
    from jinja2 import nodes

    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except (jinja2.TemplateError, RecursionError):
        return []
    found: dict[str, None] = {}
    for compare in tree.find_all(nodes.Compare):
        if any(_is_content(node) for node in (compare, *compare.find_all((nodes.Getattr, nodes.Getitem, nodes.Name)))):
            found |= {const.value: None for const in compare.find_all(nodes.Const) if _is_phrase(const.value)}
    return list(found)


def _is_content(node: Any) -> bool:
    name = (
        getattr(node, "attr", None) or getattr(getattr(node, "arg", None), "value", None) or getattr(node, "name", None)
    )
    return name == "content"


def _is_phrase(value: object) -> bool:
    return isinstance(value, str) and value not in ("", "content", "text", "type")


def _check_architecture(file: Gguf) -> None:
    from sterna.trace import trace

    trace(file)


def _check_vocabulary(file: Gguf) -> None:
    from sterna.tokenizer import Tokenizer

    Tokenizer.from_gguf(file)


def _check_template(file: Gguf) -> None:
    from sterna.chat import choose_template

    template = choose_template(file)  # type: ignore[arg-type]
    if template is not None:
        template.check()


_CHECKS: dict[str, Callable[[Gguf], None]] = {
    "architecture": _check_architecture,
    "vocabulary": _check_vocabulary,
    "template": _check_template,
}


def _check(check: Callable[[Gguf], None], file: Gguf) -> str:
    try:
        check(file)
    except SternaError as error:
        return str(error)
    return "ok"


def _print(report: dict[str, Any]) -> None:
    file, template = report["file"], report["template"]
    file["bytes"] = f"{file['bytes']} ({console.size(file['bytes'])})"
    if template["characters"] is None:
        report["template"] = {"characters": "none"}
    else:
        phrases = ", ".join(repr(phrase) for phrase in template["looks_for_in_messages"])
        report["template"] = {"characters": template["characters"], "looks for in messages": phrases or "nothing"}
    for title in (
        "file",
        "model",
        "formats",
        "ternary",
        "i2s_order",
        "vocabulary",
        "template",
        "metadata",
        "tensors",
        "checks",
    ):
        section = report.get(title)
        if not section:
            continue
        print(title.replace("_", " "))
        if isinstance(section, dict):
            console.print_fields(((name.replace("_", " "), _text(value)) for name, value in section.items()), "  ")
        else:
            console.print_table(
                [f"  {name}" for name in section[0]], [[f"  {_text(v)}" for v in row.values()] for row in section]
            )


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, dict):
        more = ", ..." if value["length"] > len(value["first"]) else ""
        value = f"{value['type']} of {value['length']}: {', '.join(map(repr, value['first']))}{more}"
    text = " ".join(str(value).split()) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
