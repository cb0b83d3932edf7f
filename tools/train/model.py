"""The family's architecture in PyTorch: what transformers calls LlamaForCausalLM, under the same tensor names.

RMS norm, rotary positions (halves of a head rotated against each other, positions divided by a factor), grouped-query
attention, SwiGLU, no biases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .settings import ModelSettings

_DEVIATION = 0.02  # of the initial weights


class Attention(nn.Module):
    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.n_head, self.n_head_kv, self.head_dim = settings.n_head, settings.n_head_kv, settings.head_dim
        n_embd, width_kv = settings.n_embd, settings.n_head_kv * settings.head_dim
        self.q_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.k_proj = nn.Linear(n_embd, width_kv, bias=False)
        self.v_proj = nn.Linear(n_embd, width_kv, bias=False)
        self.o_proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, n_tokens, n_embd] -> the same shape."""
        batch, n_tokens, _ = x.shape
        q = self.q_proj(x).view(batch, n_tokens, self.n_head, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, n_tokens, self.n_head_kv, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, n_tokens, self.n_head_kv, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        shared = self.n_head // self.n_head_kv
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, n_tokens, -1))


class FeedForward(nn.Module):
    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(settings.n_embd, settings.n_ff, bias=False)
        self.up_proj = nn.Linear(settings.n_embd, settings.n_ff, bias=False)
        self.down_proj = nn.Linear(settings.n_ff, settings.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(settings.n_embd, settings.rms_norm_eps)
        self.self_attn = Attention(settings)
        self.post_attention_layernorm = nn.RMSNorm(settings.n_embd, settings.rms_norm_eps)
        self.mlp = FeedForward(settings)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Everything but the output matrix."""

    cos: Tensor
    sin: Tensor

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(settings.n_vocab, settings.n_embd)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.n_layer))
        self.norm = nn.RMSNorm(settings.n_embd, settings.rms_norm_eps)
        cos, sin = rope_tables(settings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 [batch, n_tokens] -> [batch, n_tokens, n_embd]."""
        n_tokens = ids.shape[1]
        x: Tensor = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:n_tokens], self.sin[:n_tokens])
        return self.norm(x)


class Llama(nn.Module):
    """The model. Its state has the names of transformers' checkpoints, without `lm_head.weight` where that is tied."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.model = Body(settings)
        self.lm_head = None if settings.tied else nn.Linear(settings.n_embd, settings.n_vocab, bias=False)

    def initialize(self, seed: int) -> None:
        """Small random weights, smaller where the layers add to what goes through; norms at one."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 2:
                    is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                    deviation = _DEVIATION / (2 * self.settings.n_layer) ** 0.5 if is_output else _DEVIATION
                    weight.normal_(0, deviation, generator=generator)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices inside the layers."""
        return [weight for weight in self.model.layers.parameters() if weight.ndim == 2]

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 [batch, n_tokens] -> logits [batch, n_tokens, n_vocab]."""
        output = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(self.model(ids), output.weight)


def rope_tables(settings: ModelSettings) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, float32 [n_ctx_train, head_dim] each."""
    frequencies = settings.rope_freq_base ** (-torch.arange(0, settings.head_dim, 2).double() / settings.head_dim)
    positions = torch.arange(settings.n_ctx_train).double() / settings.rope_factor
    angles = torch.outer(positions, frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x [batch, heads, n_tokens, head_dim], tables [n_tokens, head_dim]."""
    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat((-high, low), -1) * sin).to(x.dtype)
