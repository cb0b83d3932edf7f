"""What the arguments of `Llama` mean to localcoder, and which of them it refuses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from localcoder.compat.llama_cpp import constants as c
from localcoder.compat.llama_cpp.llama_grammar import grammar_options
from localcoder.compat.llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from localcoder.errors import OptionError

_KV_TYPES = {None: "f16", c.GGML_TYPE_F16: "f16", c.GGML_TYPE_Q8_0: "q8_0", c.GGML_TYPE_Q4_0: "q4_0"}
_ONLY: dict[str, Collection[Any]] = {  # the values that are no wish for something that is not here
    "tensor_split": (None,),
    "vocab_only": (False,),
    "kv_overrides": (None, {}),
    "rope_scaling_type": (None, c.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED),
    "pooling_type": range(c.LLAMA_POOLING_TYPE_UNSPECIFIED, c.LLAMA_POOLING_TYPE_LAST + 1),
    "attention_type": (c.LLAMA_ATTENTION_TYPE_UNSPECIFIED, c.LLAMA_ATTENTION_TYPE_CAUSAL),
    "rope_freq_base": (0.0,),
    "rope_freq_scale": (0.0,),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,),
    "yarn_orig_ctx": (0,),
    "lora_base": (None,),
    "lora_path": (None,),
    "chat_handler": (None,),
    "tokenizer": (None,),
    "spm_infill": (False,),
    "type_k": tuple(_KV_TYPES),
    "type_v": tuple(_KV_TYPES),
    "tfs_z": (1.0,),
    "mirostat_mode": (0, 2),
}

_SAME = (  # options of a completion that mean the same here
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "mirostat_eta",
    "logprobs",
)


def refuse_unsupported(arguments: Mapping[str, Any]) -> None:
    """OptionError for an argument whose value asks for something that localcoder does not do."""
    for name, value in arguments.items():
        if name in _ONLY and not any(value is allowed or value == allowed for allowed in _ONLY[name]):
            raise OptionError(f"{name} is {value!r:.60}; localcoder has no such thing, leave it out")


def coder_arguments(a: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Coder` for those of `Llama`.

    Raises:
        OptionError: no such file, or an argument that cannot be honoured.
    """
    refuse_unsupported(a)
    if not Path(a["model_path"]).is_file():
        raise OptionError(f"Model path does not exist: {a['model_path']}")
    if a["draft_model"] is not None and not isinstance(a["draft_model"], LlamaPromptLookupDecoding):
        raise OptionError("draft_model must be a LlamaPromptLookupDecoding of localcoder.compat.llama_cpp")
    if _KV_TYPES[a["type_k"]] != _KV_TYPES[a["type_v"]]:
        raise OptionError("type_k and type_v must be the same")
    device = "cpu"
    if a["n_gpu_layers"]:
        device = f"cuda:{a['main_gpu']}" if a["main_gpu"] else "auto"
    return {
        "path": a["model_path"],
        "n_ctx": a["n_ctx"] or None,
        "threads": a["n_threads"],
        "device": device,
        "gpu_layers": a["n_gpu_layers"] if a["n_gpu_layers"] > 0 else None,
        "n_ubatch": min(a["n_batch"], a["n_ubatch"]),
        "kv_type": _KV_TYPES[a["type_k"]],
    }


def generation_options(a: Mapping[str, Any], *, max_tokens: int, seed: int | None, last_n: int) -> dict[str, Any]:
    """The options of `Coder` for those of `create_completion`.

    Raises:
        OptionError: one that is not supported.
    """
    refuse_unsupported(a)
    stop = a["stop"] if a["stop"] is not None else ()
    return {
        "top_k": 0 if a["top_k"] == -1 else a["top_k"],
        "repeat_last_n": last_n,
        "penalize_prompt": False,
        "mirostat_tau": a["mirostat_tau"] if a["mirostat_mode"] else 0.0,
        "seed": seed,
        "logit_bias": {int(token): float(bias) for token, bias in (a["logit_bias"] or {}).items()},
        "max_tokens": max_tokens,
        "stop": stop,
        **{name: a[name] for name in _SAME},
        **grammar_options(a),
    }
