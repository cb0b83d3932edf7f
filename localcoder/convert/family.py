"""The members of the DeepSeek-Coder family, by the names people call them."""

from __future__ import annotations

from localcoder.convert.config import ModelConfig


def _v1(n_layer: int, n_embd: int, n_ff: int, n_head: int, n_head_kv: int) -> ModelConfig:
    return ModelConfig(
        n_layer=n_layer,
        n_embd=n_embd,
        n_ff=n_ff,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=128,
        n_vocab=32256,
        n_ctx_train=16384,
        rms_norm_eps=1e-6,
        rope_freq_base=100000.0,
        rope_factor=4.0,
        tied=False,
    )


FAMILY: dict[str, ModelConfig] = {
    "1.3b": _v1(24, 2048, 5504, 16, 16),
    "5.7b-mqa": _v1(32, 4096, 11008, 32, 1),
    "6.7b": _v1(32, 4096, 11008, 32, 32),
    "33b": _v1(62, 7168, 19200, 56, 8),
    "7b-v1.5": ModelConfig(
        n_layer=30,
        n_embd=4096,
        n_ff=11008,
        n_head=32,
        n_head_kv=32,
        head_dim=128,
        n_vocab=102400,
        n_ctx_train=4096,
        rms_norm_eps=1e-6,
        rope_freq_base=10000.0,
        rope_factor=None,
        tied=False,
    ),
}
