"""Models that transformers lacks, from their papers and first implementations: references of tools/make_oracle.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last extent."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


def rotated(x: Tensor, theta: float) -> Tensor:
    """x, [n, heads, head_dim], turned by its positions: element i with element i + head_dim / 2."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x))[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float = 0.0) -> Tensor:
    """Causal attention, [n, heads * head_dim]; `cap` bounds the scores by cap * tanh(score / cap)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    scores = cap * torch.tanh(scores / cap) if cap else scores
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)


class OpenElmAttention(nn.Module):
    """With the heads of one layer, q and k normalised."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        size, self.theta = config.head_dim, config.rope_theta
        self.heads, self.kv_heads, self.head_dim = config.layer_heads[layer], config.layer_kv_heads[layer], size
        self.q_proj = nn.Linear(config.hidden_size, self.heads * size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * size, bias=False)
        self.o_proj = nn.Linear(self.heads * size, config.hidden_size, bias=False)
        self.q_norm, self.k_norm = RMSNorm(size, config.rms_norm_eps), RMSNorm(size, config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        q = rotated(self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, -1))), self.theta)
        k = rotated(self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, -1))), self.theta)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, -1))
        output: Tensor = self.o_proj(attended(q, k, v, self.head_dim**-0.5))
        return output


class OpenElmMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, size, bias=False)
        self.up_proj = nn.Linear(hidden, size, bias=False)
        self.down_proj = nn.Linear(size, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class OpenElmLayer(nn.Module):
    """Norms before each half."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = OpenElmAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = OpenElmMlp(config.hidden_size, config.layer_sizes[layer])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        output: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return output


class GrokAttention(nn.Module):
    """With capped scores."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        hidden, size = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * size, bias=False)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * size, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        q, k, v = (p(x).unflatten(-1, (-1, config.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotated(q, config.rope_theta), rotated(k, config.rope_theta)
        y = attended(q, k, v, config.attn_output_multiplier, config.attn_logit_softcapping)
        output: Tensor = self.o_proj(y)
        return output


class GrokExperts(nn.Module):
    """GELU-gated networks, their matrices in two tensors."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        count, hidden, size = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * size, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, size))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x, [n, hidden], through all experts, weighted by [n, count]."""
        gate, up = torch.einsum("ns,ems->nem", x, self.gate_up_proj).chunk(2, -1)
        y = torch.einsum("nem,esm->nes", functional.gelu(gate, approximate="tanh") * up, self.down_proj)
        return (y * weights[..., None]).sum(1)


class GrokMixture(nn.Module):
    """The best experts of each row, their weights adding to one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.used = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = GrokExperts(config)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        best, chosen = scores.topk(self.used)
        weights = torch.zeros_like(scores).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        output: Tensor = self.experts(x, weights)
        return output


class GrokLayer(nn.Module):
    """Norms before and behind each half."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            self.add_module(f"{name}_layernorm", RMSNorm(config.hidden_size, config.rms_norm_eps))
        self.self_attn = GrokAttention(config)
        self.mlp = GrokMixture(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x)))
        output: Tensor = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return output


class Decoder(nn.Module):
    """Embedding, layers, norm and head; multipliers of embedding and logits where the config has them."""

    config_class = PretrainedConfig
    layer_class: type[nn.Module]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([self.layer_class(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        x = self.embed_tokens(input_ids[0]) * getattr(self.config, "embedding_multiplier_scale", 1.0)
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.norm(x)) * getattr(self.config, "output_multiplier_scale", 1.0)
        return SimpleNamespace(logits=logits[None])


class OpenElm(Decoder):
    """OpenELM (arXiv:2404.14619; apple/OpenELM, modeling_openelm.py)."""

    layer_class = OpenElmLayer


class Grok(Decoder):
    """Grok-1 (xai-org/grok-1, model.py). Router logits are not capped, as in llama.cpp."""

    layer_class = GrokLayer
