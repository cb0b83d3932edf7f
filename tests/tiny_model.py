"""Writes small random LLaMA models as GGUF, with the `gguf` package alone, for tests of everything above files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from localcoder.quants import ALL, QuantType, by_name
from localcoder.quants.search import is_searched, quantize_best

BYTE_TOKENS = 256
TYPES = [t.name for t in ALL if t.quantize_blocks is not None or is_searched(t)]  # that a model can be made of
SHAPES = {
    "gqa": {"n_head": 4, "n_head_kv": 2, "head_dim": 16},
    "mqa": {"n_head": 4, "n_head_kv": 1, "head_dim": 32},
    "mha": {"n_head": 3, "n_head_kv": 3, "head_dim": 80},
    "group of 7": {"n_head": 14, "n_head_kv": 2, "head_dim": 16},
    "head of 128": {"n_head": 2, "n_head_kv": 1, "head_dim": 128},
    "head of 192": {"n_head": 4, "n_head_kv": 2, "head_dim": 192},
    "head of 256": {"n_head": 2, "n_head_kv": 2, "head_dim": 256},
    "head of 10": {"n_head": 2, "n_head_kv": 2, "head_dim": 10},
}


def tokens(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte value."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    extra = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(extra)) for b in range(256)]


def write_tiny_model(
    path: Path,
    *,
    type_name: str = "f32",
    n_layer: int = 2,
    n_embd: int = 64,
    n_ff: int = 96,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int | None = None,
    n_vocab: int = 320,
    n_ctx: int = 256,
    tied: bool = False,
    rope_factor: float = 4.0,
    seed: int = 0,
    scale: float = 1.0,
    name: str = "",
    special_tokens: bool = True,
    chat_template: str = "",
) -> Path:
    """A model of random weights whose vocabulary is the 256 bytes, the family's special tokens, and padding."""
    rng = np.random.default_rng(seed)
    qtype = by_name(type_name)
    head_dim = head_dim or n_embd // n_head
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layer)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope_factor)
    writer.add_layer_norm_rms_eps(1e-6)
    if name:
        writer.add_name(name)
    if chat_template:
        writer.add_chat_template(chat_template)
    _add_byte_tokenizer(writer, n_vocab, SPECIAL_TOKENS if special_tokens else SPECIAL_TOKENS[:2])

    def vector(name: str, n: int) -> None:
        writer.add_tensor(name, (1 + 0.1 * rng.standard_normal(n)).astype(np.float32))

    def matrix(name: str, n_out: int, n_in: int) -> None:
        x = (scale * rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(np.float32)
        kind: QuantType = qtype if n_in % qtype.block_elems == 0 else by_name("f16")
        data = quantize_best(kind, x) if kind.quantize_blocks is None else kind.quantize(x)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(kind.gguf_id))

    matrix("token_embd.weight", n_vocab, n_embd)
    for i in range(n_layer):
        vector(f"blk.{i}.attn_norm.weight", n_embd)
        matrix(f"blk.{i}.attn_q.weight", n_head * head_dim, n_embd)
        matrix(f"blk.{i}.attn_k.weight", n_head_kv * head_dim, n_embd)
        matrix(f"blk.{i}.attn_v.weight", n_head_kv * head_dim, n_embd)
        matrix(f"blk.{i}.attn_output.weight", n_embd, n_head * head_dim)
        vector(f"blk.{i}.ffn_norm.weight", n_embd)
        matrix(f"blk.{i}.ffn_gate.weight", n_ff, n_embd)
        matrix(f"blk.{i}.ffn_up.weight", n_ff, n_embd)
        matrix(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
    vector("output_norm.weight", n_embd)
    if not tied:
        matrix("output.weight", n_vocab, n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SPECIAL_TOKENS = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<pad>",
    "<|User|>",
    "<|Assistant|>",
    "<|EOT|>",
]


def _add_byte_tokenizer(writer: gguf.GGUFWriter, n_vocab: int, special: list[str]) -> None:
    tokens = byte_alphabet() + special
    kinds = [gguf.TokenType.NORMAL] * BYTE_TOKENS + [gguf.TokenType.CONTROL] * len(special)
    n_pad = n_vocab - len(tokens)
    tokens += [f"[PAD{len(tokens) + i}]" for i in range(n_pad)]
    kinds += [gguf.TokenType.UNUSED] * n_pad
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-coder")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([])
    for i, role in enumerate(["bos", "eos", "fim_suf", "fim_pre", "fim_mid", "", "", "", "eot"][: len(special)]):
        if role:
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", BYTE_TOKENS + i)
    writer.add_add_bos_token(True)
