"""The op vocabulary of model files: each function appends one node to the Program being traced.

Shapes and attributes are checked in the core (csrc/program/shape_rules.cpp); the functions here only forward.
Activations are float32, [num_tokens, features] or [num_tokens, num_heads, head_dim]. A shape that does not fit raises
ArgumentError.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

from sterna._core import ProgramBuilder
from sterna.errors import SternaError

if TYPE_CHECKING:
    from types import FrameType

    from sterna.adapters import Adapter
    from sterna.rope_spec import RopeSpec

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "softplus"]
Gate = Activation | Literal["clamped_swiglu"]
Pooling = Literal["mean", "cls", "last"]
ActivationRule = Literal["auto", "int8_per_token"]
Attribute = bool | int | float | str


@dataclass(frozen=True)
class Value:
    """A traced value: its shape is known, its numbers are not. "T" stands for num_tokens, "L" for num_outputs."""

    id: int
    name: str
    shape: tuple[int | str, ...]

    def __add__(self, other: Value) -> Value:
        return add(self, other)

    def __mul__(self, other: Value | float) -> Value:
        return mul(self, other) if isinstance(other, Value) else scale(self, other)

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self.name} is a traced value and has no truth value: a program cannot branch on data")

    def heads(self, head_dim: int) -> Value:
        """[num_tokens, num_heads * head_dim] -> [num_tokens, num_heads, head_dim]."""
        return reshape(self, self.size // head_dim, head_dim, label=f"{self.label}.heads")

    @property
    def size(self) -> int:
        """The last extent."""
        size = self.shape[-1]
        return size if isinstance(size, int) else 0

    @property
    def label(self) -> str:
        """The name without scope or layer: "layers.3/attn_q" and "blk.3.attn_q" are "attn_q"."""
        if self.name.startswith("blk."):
            return self.name.split(".", 2)[-1]
        return self.name.rsplit("/", 1)[-1]


class Tracer:
    """A Program under construction: the builder, the open scopes, the names in use."""

    def __init__(self, activation_rule: ActivationRule = "auto", adapters: Sequence[Adapter] = ()) -> None:
        """`activation_rule` is the rule of linear layers for which a model file names none."""
        self.adapters = adapters
        self.builder = ProgramBuilder()
        self.activation_rule: ActivationRule = activation_rule
        self.scopes: list[str] = []
        self.ends_at_unembed = False
        self._names: dict[str, int] = {}

    def input(self, name: str) -> Value:
        """An int32 array of the batch, [num_tokens]."""
        self._names[name] = 1
        return self._value(self.builder.add_input(name, ("T",)), name)

    def weight(self, name: str, shape: Sequence[int], format: str) -> Value:
        """A tensor of the file, rows first."""
        return self._value(self.builder.add_weight(name, shape, format), name)

    def emit(
        self, op: str, label: str, inputs: Sequence[tuple[str, Value | None]], attributes: dict[str, Attribute]
    ) -> list[Value]:
        """Appends a node and gives its results; operands that are None are left out."""
        name = self._unique("/".join([*self.scopes, label]))
        operands = [(role, value.id) for role, value in inputs if value is not None]
        ids = self.builder.emit(op, name, operands, attributes, _source(sys._getframe(1)))
        return [self._value(id, name if i == 0 else f"{name}.{i}") for i, id in enumerate(ids)]

    def _value(self, id: int, name: str) -> Value:
        return Value(id, name, self.builder.shape(id))

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return self._unique(f"{name}.{count}") if count else name


class _HiddenStateFoundError(Exception):
    """Ends the tracing of a function of logits where it reads the hidden state."""

    def __init__(self, value: Value) -> None:
        self.value = value


_current: ContextVar[Tracer] = ContextVar("tracer")


@contextlib.contextmanager
def tracing(tracer: Tracer) -> Iterator[None]:
    """Ops called inside go to `tracer`."""
    token = _current.set(tracer)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Nodes traced inside are named "name/..."."""
    scopes = current_tracer().scopes
    scopes.append(name)
    try:
        yield
    finally:
        scopes.pop()


def current_tracer() -> Tracer:
    tracer = _current.get(None)
    if tracer is None:
        raise SternaError("ops can only be called while a model file is traced")
    return tracer


# Calls from here are made for a model file.
_OPS_FILES = frozenset(
    __file__.removesuffix("ops.py") + f"{name}.py"
    for name in ("ops", "expert_ops", "bitlinear", "layer_norm", "mlp", "moe", "projections")
)


def _source(frame: FrameType) -> str:
    """File and line of the model file that called, as "models/llama.py:27"."""
    at: FrameType | None = frame
    while at is not None and at.f_code.co_filename in _OPS_FILES:
        at = at.f_back
    if at is None:
        return ""
    return "/".join(at.f_code.co_filename.replace("\\", "/").split("/")[-2:])[-200:] + f":{at.f_lineno}"


def weight(name: str, shape: Sequence[int], format: str) -> Value:
    """A tensor of the file in the Program being traced; model files get theirs from Weights."""
    return current_tracer().weight(name, shape, format)


def emit(op: str, label: str, *inputs: tuple[str, Value | None], **attributes: Attribute) -> Value:
    return current_tracer().emit(op, label, inputs, attributes)[0]


def batch_input(name: str) -> Value:
    """An int32 array of the batch, [num_tokens]; model files have theirs from Batch."""
    return current_tracer().input(name)


def hidden_state(logits: Callable[[], Value]) -> Value:
    """What `unembed` would read in the function that `logits` calls, [num_tokens, hidden_size]; the rest is left out.

    Raises SternaError where the function has no unembed.
    """
    tracer = current_tracer()
    tracer.ends_at_unembed = True
    try:
        logits()
    except _HiddenStateFoundError as found:
        return found.value
    finally:
        tracer.ends_at_unembed = False
    raise SternaError("a function of logits has no unembed")


def embed(tokens: Value, w: Value) -> Value:
    """Rows of the embedding table: tokens [num_tokens], w [vocab_size, hidden_size] -> [num_tokens, hidden_size].

    With the batch's positions for tokens: learned positions, w [max_position_embeddings, hidden_size].
    """
    return emit("embed", "embed" if tokens.name == "tokens" else w.label, ("tokens", tokens), ("w", w))


def linear(x: Value, w: Value, bias: Value | None = None) -> Value:
    """x w^T + bias: x [num_tokens, k], w [n, k], bias [n] -> [num_tokens, n].

    x is rounded before the product by the rule of the tracer: "auto" as w's format asks for (int8 per 32 or per 256
    elements; not at all for F32, F16, BF16); "int8_per_token" with one scale per row, as BitNet defines it, in a model
    whose linear layers are all ternary.
    """
    return adapt(linear_alone(x, w, bias), x, w)


def linear_alone(x: Value, w: Value, bias: Value | None = None) -> Value:
    """`linear` without the adapters of w: for a result that is changed before `adapt`."""
    rule = current_tracer().activation_rule
    return emit("linear", w.label, ("x", x), ("w", w), ("bias", bias), activation=rule)


def adapt(y: Value, x: Value, w: Value) -> Value:
    """y + scale * b a x for the rows of sequences that use a LoRA adapter with matrices a, b for w. Same shape as y.

    x [num_tokens, k], w [n, k], y [num_tokens, n]; arXiv:2106.09685.
    """
    for adapter in current_tracer().adapters:
        pair = adapter.use(w.name)
        if pair is None:
            continue
        # The prefix says in which file the tensors are.
        a, b = (weight(f"lora.{adapter.index}/{t.name}", t.shape, t.format) for t in (pair.a, pair.b))
        operands = [("x", x), ("y", y), ("a", a), ("b", b)]
        y = emit("lora", f"{w.label}.lora", *operands, adapter=adapter.index, factor=pair.factor)
    return y


def head_linear(x: Value, w: Value) -> Value:
    """Each head by a matrix of its own: x [num_tokens, heads, k], w [heads, n, k] -> [num_tokens, heads, n]."""
    return emit("head_linear", w.label, ("x", x), ("w", w), activation=current_tracer().activation_rule)


def unembed(x: Value, w: Value, bias: Value | None = None) -> Value:
    """Logits of the rows that the batch asks for: x [num_tokens, k], w [vocab_size, k] -> [num_outputs, vocab_size].

    x is rounded as w's format asks for, in ternary models as well.
    """
    if current_tracer().ends_at_unembed:
        raise _HiddenStateFoundError(x)
    return emit("unembed", "logits", ("x", x), ("w", w), ("bias", bias), activation="auto")


def rms_norm(x: Value, w: Value | None, eps: float) -> Value:
    """x / sqrt(mean(x^2) + eps) * w over the last dimension; w has its size (arXiv:1910.07467). Same shape as x."""
    label = f"{x.label}.rms_norm" if w is None else w.label
    return emit("rms_norm", label, ("x", x), ("w", w), eps=eps)


def layer_norm(x: Value, w: Value | None, bias: Value | None, eps: float) -> Value:
    """(x - mean(x)) / sqrt(var(x) + eps) * w + bias over the last dimension (arXiv:1607.06450). Same shape as x.

    w and bias have the size of the last dimension, or, for x [num_tokens, num_heads, head_dim], one such vector for
    each head: [num_heads * head_dim]. No bias without w.
    """
    label = f"{x.label}.layer_norm" if w is None else w.label
    return emit("layer_norm", label, ("x", x), ("w", w), ("bias", bias), eps=eps)


def rope(
    x: Value,
    positions: Value,
    spec: RopeSpec,
    *,
    style: Literal["halves", "interleaved"] = "halves",
    factors: Value | None = None,
    long_factors: Value | None = None,
) -> Value:
    """Rotary position embedding of x, [num_tokens, num_heads, head_dim] (arXiv:2104.09864). Same shape.

    "halves" turns element i with i + rotary_dim / 2 (GPT-NeoX, Hugging Face), "interleaved" 2i with 2i + 1 (GPT-J, and
    Llama as GGUF files permute it). `factors`, [rotary_dim / 2], divide the frequencies (rope_freqs.weight of Llama 3).
    With scaling "longrope" sequences that may grow longer than the original context take `long_factors` instead
    (arXiv:2402.13753).
    """
    return emit(
        "rope",
        f"{x.label}.rope",
        ("x", x),
        ("positions", positions),
        ("factors", factors),
        ("long_factors", long_factors),
        theta=spec.theta,
        rotary_dim=spec.rotary_dim,
        style=style,
        scaling=spec.scaling,
        factor=spec.factor,
        original_context=spec.original_context,
        beta_fast=spec.beta_fast,
        beta_slow=spec.beta_slow,
        truncate=spec.truncate,
        attention_factor=spec.attention_factor,
    )


@dataclass(frozen=True)
class AttentionTemperature:
    """Scores are multiplied by 1 + scale * ln(1 + floor((position + offset) / length))."""

    scale: float
    length: int
    offset: int = 0


def store_kv(k: Value, v: Value, *, layer: int) -> Value:
    """Keeps k [num_tokens, num_kv_heads, head_dim] and v [num_tokens, num_kv_heads, value_head_dim] of a sequence that
    is encoded, for `attention` of `layer` in the function of the logits. A view of k."""
    return emit("store_kv", f"{k.label}.kept", ("k", k), ("v", v), layer=layer)


@dataclass(frozen=True)
class RelativeBias:
    """What is added to scores by the distance of the key: w, [num_buckets, num_heads] (arXiv:1910.10683).

    Half of the buckets of a side are for single distances, the others grow up to `max_distance`; without `causal` later
    keys have half of all buckets.
    """

    w: Value
    max_distance: int


def attention(
    q: Value,
    k: Value | None,
    v: Value | None,
    *,
    layer: int,
    scale: float | None = None,
    window: int = 0,
    chunk: int = 0,
    causal: bool = True,
    softcap: float = 0.0,
    sinks: Value | None = None,
    max_alibi_bias: float = 0.0,
    temperature: AttentionTemperature | None = None,
    latent: int = 0,
    relative_bias: RelativeBias | None = None,
) -> Value:
    """Grouped-query attention through the KV cache of `layer` -> [num_tokens, num_heads * value_head_dim].

    q [num_tokens, num_heads, head_dim], k [num_tokens, num_kv_heads, head_dim], v [num_tokens, num_kv_heads,
    value_head_dim]; without k and v it reads those that an earlier call for `layer` stored. A row sees the keys of its
    own sequence up to its own position, with `window` > 0 only the last `window` of them, with `chunk` > 0 only those
    from the last multiple of `chunk` on; without `causal` all keys of its sequence, with `window` > 0 those at most
    window // 2 positions away. Scores are q.k * scale (None: 1 / sqrt(head_dim)), times a `temperature` of the
    position, then softcap * tanh(score / softcap) where softcap > 0, then minus the distance times a slope of each
    head where `max_alibi_bias` > 0 (arXiv:2108.12409). `sinks`, [num_heads], are scores of a key without value that
    every row sees (arXiv:2309.17453). With `latent` > 0 there is no v: the values are the first `latent` elements of
    the keys, which the cache holds once (arXiv:2405.04434). Without `causal`, k and v, a row sees all that `store_kv`
    has kept for `layer`.
    """
    optional: dict[str, Attribute] = {}
    if temperature is not None:
        optional = {f"temperature.{name}": value for name, value in vars(temperature).items()}
    if relative_bias is not None:
        optional["max_distance"] = relative_bias.max_distance
    return emit(
        "attention",
        "attention",
        ("q", q),
        ("k", k),
        ("v", v),
        ("sinks", sinks),
        ("relative_bias", None if relative_bias is None else relative_bias.w),
        layer=layer,
        scale=q.size**-0.5 if scale is None else scale,
        window=window,
        chunk=chunk,
        causal=causal,
        softcap=softcap,
        max_alibi_bias=max_alibi_bias,
        latent=latent,
        **optional,
    )


def glu(gate: Value, up: Value, activation: Gate = "silu") -> Value:
    """activation(gate) * up, element by element (arXiv:2002.05202).

    "clamped_swiglu" is g * sigmoid(1.702 g) * (u + 1) with g = min(gate, 7) and u = up within -7 .. 7, as in gpt-oss
    (arXiv:2508.10925).
    """
    return emit("glu", "glu", ("gate", gate), ("up", up), activation=activation)


def short_conv(x: Value, w: Value, bias: Value | None = None, *, layer: int) -> Value:
    """Causal convolution of each channel with its own kernel, x [num_tokens, channels] -> the same.

    w [channels, kernel], its last column for the token itself, bias [channels]. The layer keeps the last kernel - 1
    inputs of each sequence.
    """
    return emit("short_conv", f"{w.label}.conv", ("x", x), ("w", w), ("bias", bias), layer=layer)


def ssm_scan(x: Value, dt: Value, b: Value, c: Value, a: Value, d: Value, *, layer: int) -> Value:
    """Selective state space, x [num_tokens, num_heads, head_dim] -> [num_tokens, num_heads * head_dim].

    s = s exp(dt a) + (dt x) b^T; y = s c + d x, where the layer keeps s, [num_heads, head_dim, state_size], of each
    sequence. dt [num_tokens, num_heads] is above 0; b and c [num_tokens, num_groups, state_size], a group for as many
    heads as there are for each; a and d [num_heads] (Mamba-2, arXiv:2405.21060). With heads of one element and one
    group, a may be [num_heads, state_size] (Mamba, arXiv:2312.00752).
    """
    operands = [("x", x), ("dt", dt), ("b", b), ("c", c), ("a", a), ("d", d)]
    return emit("ssm_scan", "ssm_scan", *operands, layer=layer)


def delta_rule(q: Value, k: Value, v: Value, g: Value, beta: Value, *, layer: int) -> Value:
    """Gated delta rule, v [num_tokens, num_heads, value_dim] -> [num_tokens, num_heads * value_dim].

    s = s exp(g); s = s + k (beta (v - k^T s))^T; y = q^T s, where the layer keeps s, [num_heads, key_dim, value_dim],
    of each sequence. g and beta [num_tokens, num_heads]; q and k [num_tokens, num_key_heads, key_dim], a key head for
    as many heads as there are for each (arXiv:2412.06464).
    """
    operands = [("q", q), ("k", k), ("v", v), ("g", g), ("beta", beta)]
    return emit("delta_rule", "delta_rule", *operands, layer=layer)


def activation(x: Value, kind: Activation) -> Value:
    """The function of that name of each element, same shape.

    silu: x / (1 + exp(-x)); gelu: x Phi(x) (arXiv:1606.08415); gelu_tanh: its approximation by tanh; relu: max(x, 0);
    relu2: max(x, 0)^2; sigmoid: 1 / (1 + exp(-x)); tanh; softplus:
    ln(1 + exp(x)).
    """
    return emit("activation", f"{x.label}.{kind}", ("x", x), kind=kind)


def add(a: Value, b: Value) -> Value:
    """a + b, of equal shape; b may also be a weight with one element per feature, or one in all."""
    return emit("add", f"{b.label}.add", ("a", a), ("b", b))


def mul(a: Value, b: Value) -> Value:
    """a * b, element by element; b may also have one element per row ([num_tokens, 1]), or be a weight with one element
    per feature, or one in all."""
    return emit("mul", f"{b.label}.mul", ("a", a), ("b", b))


def scale(x: Value, factor: float) -> Value:
    """x * factor; the factor is rounded to float32."""
    return emit("scale", f"{x.label}.scale", ("x", x), factor=factor)


def clamp(x: Value, limit: float) -> Value:
    """x, but -limit below that and limit above it; the limit is rounded to float32."""
    return emit("clamp", f"{x.label}.clamp", ("x", x), limit=limit)


def reshape(x: Value, *dims: int, label: str | None = None) -> Value:
    """The features of each row as `dims` (one or two of them): [num_tokens, *dims]. A view."""
    text = ", ".join(str(dim) for dim in dims)
    return emit("reshape", label or f"{x.label}.reshape", ("x", x), dims=text)


def split(x: Value, *sizes: int) -> list[Value]:
    """Pieces of the last dimension, which `sizes` add up to."""
    text = ", ".join(str(size) for size in sizes)
    return current_tracer().emit("split", f"{x.label}.split", [("x", x)], {"sizes": text})


def concat(*parts: Value) -> Value:
    """Values side by side along the last dimension; the others are equal."""
    label = f"{parts[0].label}.concat" if parts else "concat"
    return emit("concat", label, *(("x", part) for part in parts))


def pool(x: Value, kind: Pooling) -> Value:
    """One vector for each sequence: x [num_tokens, size] -> [num_outputs, size].

    "mean" of its rows, or its first ("cls") or "last" row.
    """
    return emit("pool", "pooled", ("x", x), kind=kind)
