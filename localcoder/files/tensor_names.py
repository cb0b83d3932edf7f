"""What a tensor is called in a Hugging Face checkpoint of the LLaMA architecture, and in a GGUF file."""

from __future__ import annotations

import re

_OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_A_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_FROM_GGUF = {gguf: hf for names in (_OUTSIDE_LAYERS, _IN_A_LAYER) for hf, gguf in names.items()}
# Tables of angles that old versions of transformers saved with the weights; they follow from the config.
_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")


def checkpoint_name(gguf_name: str) -> str:
    """The checkpoint's name of a tensor: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", gguf_name)
    if layer:
        return f"model.layers.{layer[1]}.{_FROM_GGUF[layer[2]]}"
    return _FROM_GGUF[gguf_name]


def is_buffer(checkpoint_name: str) -> bool:
    """True for tensors of a checkpoint that hold nothing learned."""
    return _BUFFER.fullmatch(checkpoint_name) is not None
