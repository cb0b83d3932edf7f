"""Rules on what a file says about its model; see `localcoder/faults.py`.

The family has two generations: V1 (infill tokens, 16384 positions, RoPE base 100000 with linear scaling by 4) and
7B-v1.5 (no infill tokens, base 10000, no scaling). A file of V1 with v1.5's RoPE, or with half of V1's, is a conversion
that lost something: it writes fluent nonsense, at length more than in short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from localcoder.faults import Fault, Rule
from localcoder.files.gguf_reader import GGUFFile
from localcoder.tokenizer.vocabulary import SPECIAL_ROLES, TokenType, looks_padding

V1_FREQ_BASE, V1_FACTOR, V1_CONTEXT = 100000.0, 4.0, 16384
_BASE = "llama.rope.freq_base"
_KIND, _FACTOR, _OLD_FACTOR = "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear"
_HARM = "positions are not those of the training: fluent nonsense, worse the longer the text"


def _is_v1(file: GGUFFile) -> bool:
    """Whether the vocabulary is of the generation that infills."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    infill = (SPECIAL_ROLES[role][1] for role in ("fim_prefix", "fim_suffix", "fim_middle"))
    return isinstance(tokens, list) and all(token in tokens for token in infill)


def _stated_factor(file: GGUFFile) -> float | None:
    """The scaling that the file states under either key; 1 where it says there is none."""
    if file.get_str(_KIND, "") == "none":
        return 1.0
    for key in (_FACTOR, _OLD_FACTOR):
        if key in file.metadata:
            return file.get_float(key)
    return None


def _rope_base(file: GGUFFile) -> Iterator[Fault]:
    if not _is_v1(file):
        return
    changes = {_BASE: V1_FREQ_BASE}
    if _BASE not in file.metadata:
        yield Fault(
            "rope-base", "no RoPE base in the file", _HARM, "100000 assumed, as DeepSeek-Coder was trained", changes
        )
        return
    base = file.get_float(_BASE)
    is_certain = file.get_int("llama.context_length", 0) == V1_CONTEXT or _stated_factor(file) == V1_FACTOR
    if base == 10000 and is_certain:
        problem = f"the RoPE base is {base:g}, where DeepSeek-Coder models with infill tokens have {V1_FREQ_BASE:g}"
        yield Fault("rope-base", problem, _HARM, None, changes)


def _rope_scaling(file: GGUFFile) -> Iterator[Fault]:
    kind, factor = file.get_str(_KIND, ""), _stated_factor(file)
    base = file.get_float(_BASE, 10000.0)
    if kind in ("", "linear") and _FACTOR not in file.metadata and factor is not None:
        problem, assumption = "RoPE scaling under the old key", f"{_OLD_FACTOR} taken as linear scaling by {factor:g}"
        changes: dict[str, Any] = {_KIND: "linear", _FACTOR: factor, _OLD_FACTOR: None}
        yield Fault("rope-scaling", problem, "today's programs do not know it: " + _HARM, assumption, changes)
    changes = {_KIND: "linear", _FACTOR: V1_FACTOR}
    if base != V1_FREQ_BASE:
        return
    if factor is None and kind == "":
        assumption = "assumed linear by 4, as DeepSeek-Coder was trained"
        yield Fault("rope-scaling", "no RoPE scaling in the file", _HARM, assumption, changes)
    elif factor is None and kind == "linear":
        yield Fault("rope-scaling", f"RoPE scaling is linear, but {_FACTOR} is missing", _HARM, None, changes)
    elif factor == 1 and _is_v1(file):
        problem = "the RoPE scaling factor is 1, where DeepSeek-Coder models with base 100000 have 4"
        yield Fault("rope-scaling", problem, _HARM, None, changes)


def _vocabulary_rows(file: GGUFFile) -> Iterator[Fault]:
    embedding = file.tensors.get("token_embd.weight")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if embedding is None or len(embedding.shape) != 2 or not isinstance(tokens, list):
        return
    n_rows, n_tokens = embedding.shape[0], len(tokens)
    if n_tokens != n_rows:
        problem = f"the vocabulary lists {n_tokens} tokens, the embedding has {n_rows} rows"
        harm = "many programs refuse the file, or sample rows that stand for nothing"
        if n_tokens < n_rows:
            changes = _resized(file, [*tokens, *(f"[PAD{i}]" for i in range(n_tokens, n_rows))])
            yield Fault("vocabulary-rows", problem, harm, "the rows without a token are never sampled", changes)
        elif all(map(looks_padding, tokens[n_rows:])):
            yield Fault("vocabulary-rows", problem, harm, None, _resized(file, tokens[:n_rows]))
        else:
            yield Fault("vocabulary-rows", problem, "some of its tokens have no embedding: not repairable")
    elif file.get_int("llama.vocab_size", n_rows) != n_rows:
        problem = f"llama.vocab_size is {file.get_int('llama.vocab_size')}, the embedding has {n_rows} rows"
        harm = "some programs refuse the file"
        yield Fault("vocabulary-rows", problem, harm, "the rows count", {"llama.vocab_size": n_rows}, is_harmless=True)


def _resized(file: GGUFFile, tokens: list[str]) -> dict[str, Any]:
    """The metadata of a vocabulary padded, or its padding cut, to these tokens."""
    changes: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "llama.vocab_size": len(tokens)}
    for key, fill in (("tokenizer.ggml.token_type", TokenType.UNUSED), ("tokenizer.ggml.scores", 0)):
        values = file.metadata.get(key)
        if isinstance(values, np.ndarray):
            padded = np.full(len(tokens), fill, values.dtype)
            padded[: len(values)] = values[: len(tokens)]
            changes[key] = padded
    return changes


# In this order: each sees what the ones before it have set right.
MODEL_RULES: tuple[Rule, ...] = (_rope_base, _rope_scaling, _vocabulary_rows)
