"""Tracing: names, sources, the choice of the model file, and what is said when a file and its tensors do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_model import FakeModel
from sterna import arch, ops
from sterna.errors import ArgumentError, ModelFormatError, SternaError, UnsupportedModelError
from sterna.trace import trace


@pytest.fixture
def tracer() -> ops.Tracer:
    return ops.Tracer()


def test_nodes_are_named_by_scope_and_weight_and_know_their_line() -> None:
    nodes = {node.name: node for node in trace(FakeModel("llama")).program.nodes()}
    assert {"embed", "layers.1/attn_q", "layers.1/attn_q.heads.rope", "layers.0/attention", "logits"} <= set(nodes)
    line = int(nodes["layers.1/attn_output"].source.removeprefix("models/llama.py:"))
    source = Path(__file__).parents[2] / "models" / "llama.py"
    assert '"attn_output"' in source.read_text(encoding="utf-8").splitlines()[line - 1]


def test_names_are_unique_where_a_label_comes_twice(tracer: ops.Tracer) -> None:
    with ops.tracing(tracer):
        x = ops.embed(tracer.input("tokens"), ops.weight("token_embd", (10, 8), "F32"))
        with ops.scope("a"):
            names = [ops.scale(x, 2.0).name for _ in range(3)]
    assert names == ["a/embed.scale", "a/embed.scale.1", "a/embed.scale.2"]


def test_a_value_has_no_truth_value(tracer: ops.Tracer) -> None:
    value = tracer.input("tokens")
    with pytest.raises(TypeError, match="tokens is a traced value and has no truth value"):
        bool(value)


def test_operators_are_ops(tracer: ops.Tracer) -> None:
    with ops.tracing(tracer):
        x = ops.embed(tracer.input("tokens"), ops.weight("token_embd", (10, 8), "F32"))
        y = (x + x) * x * 0.5
    tracer.builder.set_outputs([y.id])
    assert [node.op for node in tracer.builder.finish().nodes()] == ["embed", "add", "mul", "scale"]


def test_ops_outside_of_a_trace_say_so() -> None:
    with pytest.raises(SternaError, match="only be called while a model file is traced"):
        ops.weight("w", (1,), "F32")


def test_every_op_of_the_stubs_reaches_the_core(tracer: ops.Tracer) -> None:
    with ops.tracing(tracer):
        positions = tracer.input("positions")
        x = ops.embed(tracer.input("tokens"), ops.weight("token_embd", (10, 16), "F32"))
        left, right = ops.split(x, 8, 8)
        x = ops.concat(left, right)
        x = ops.activation(ops.rms_norm(x, None, 1e-6), "relu2")
        heads = ops.rope(x.heads(8), positions, arch.RopeSpec(10000.0, 4), style="interleaved")
        y = ops.attention(heads, heads, heads, layer=0, window=3, softcap=20.0)
        y = ops.linear(y, ops.weight("w", (16, 16), "F32"), ops.weight("w.bias", (16,), "F32"))
        y = ops.glu(y, ops.mul(y, ops.weight("one", (1,), "F32")), "gelu_tanh")
        z = ops.unembed(y, ops.weight("output", (10, 16), "F32"), ops.weight("output.bias", (10,), "F32"))
    assert (left.shape, heads.shape, y.shape, z.shape) == (("T", 8), ("T", 2, 8), ("T", 16), ("L", 10))
    tracer.builder.set_outputs([z.id])
    program = tracer.builder.finish()
    assert {node.op for node in program.nodes()} >= {"split", "concat", "activation", "rope", "attention", "glu"}
    assert [(slot.layer, slot.num_kv_heads, slot.head_dim) for slot in program.kv_slots] == [(0, 2, 8)]


def test_an_unknown_architecture_is_told_what_is_close() -> None:
    with pytest.raises(UnsupportedModelError, match=r"architecture 'lama' is not known \(closest: .*llama"):
        trace(FakeModel("lama"))
    with pytest.raises(UnsupportedModelError, match=r"architecture 'xyzzy' is not known \(docs/models.md lists the \d+"):
        trace(FakeModel("xyzzy"))


@pytest.mark.parametrize("name", ["%n%s../../", 'x"\n@register("llama")', "\x1b[31m" * 100, "", "models"])
def test_a_hostile_architecture_is_shown_without_harm(name: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        trace(FakeModel(name))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("value", "problem"), [(None, "is missing"), (7, "is not a string")])
def test_a_file_without_architecture_is_no_model(value: object, problem: str) -> None:
    model = FakeModel("llama")
    model.metadata["general.architecture"] = value
    with pytest.raises(ModelFormatError, match=f"general.architecture: {problem}"):
        trace(model)


def test_registrations_may_share_a_name_when_they_tell_files_apart() -> None:
    before = list(arch.architectures)

    def logits(config: arch.DecoderConfig, weights: arch.Weights, batch: arch.Batch) -> ops.Value:
        return ops.unembed(ops.embed(batch.tokens, weights["token_embd"]), weights["token_embd"])

    try:
        arch.register("test-shared", when=lambda m: m.has("marked"))(logits)
        arch.register("test-shared", when=lambda m: not m.has("marked"))(logits)
        assert len(trace(FakeModel("test-shared")).program.nodes()) == 2
        assert len(trace(FakeModel("test-shared", marked=1)).program.nodes()) == 2
        arch.register("test-picky", when=lambda m: False)(logits)
        with pytest.raises(UnsupportedModelError, match="no model file takes this variant of 'test-picky'"):
            trace(FakeModel("test-picky"))
        arch.register("test-shared")(logits)
        with pytest.raises(UnsupportedModelError, match="several model files claim architecture 'test-shared'"):
            trace(FakeModel("test-shared"))
    finally:
        arch.architectures[:] = before


def test_importing_the_tracer_imports_no_model_file() -> None:
    code = "import sys, sterna.trace; print([name for name in sys.modules if name.startswith('sterna.models.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_only_the_model_file_that_is_needed_is_imported() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from fake_model import FakeModel; from sterna.trace import trace; trace(FakeModel('llama'))\n"
        "print([name for name in sys.modules if name.startswith('sterna.models.')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "['sterna.models.llama', 'sterna.models.mixtral']\n"


def test_ternary_linears_round_per_token_in_every_architecture() -> None:
    def rules(model: FakeModel) -> set[object]:
        return {node.attributes["activation"] for node in trace(model).program.nodes() if node.op == "linear"}

    model = FakeModel("llama", hidden=256, intermediate=256)
    assert rules(model.with_layer_format("TQ2_0")) == {"int8_per_token"}
    assert rules(model.with_layer_format("TQ2_0").with_tensor("blk.0.attn_q.weight", (256, 256), "Q4_0")) == {"auto"}


def test_an_op_that_does_not_fit_names_op_value_and_line(tracer: ops.Tracer) -> None:
    with ops.tracing(tracer), ops.scope("layers.0"):
        x = ops.embed(tracer.input("tokens"), ops.weight("token_embd", (10, 576), "F32"))
        expected = (
            r"linear layers.0/attn_q: x has 576 features, weight blk.0.attn_q expects 640 "
            r"\(program/test_tracer.py:\d+\)"
        )
        with pytest.raises(ArgumentError, match=expected):
            ops.linear(x, ops.weight("blk.0.attn_q", (576, 640), "F32"))
