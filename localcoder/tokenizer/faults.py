"""Rules on what a file says about its vocabulary; see `localcoder/faults.py`.

Files differ by age and converter. Older ones type special tokens and padding as text and name neither the pre-tokenizer
nor the infill tokens, so a token's spelling decides where the file is silent or known to be unreliable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from localcoder.faults import Fault, Rule
from localcoder.tokenizer.byte_level import BYTE_OF
from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE, template_problem
from localcoder.tokenizer.splits import SPLITS
from localcoder.tokenizer.vocabulary import (
    SPECIAL_ROLES,
    MetadataReader,
    TokenType,
    looks_padding,
    looks_special,
    role_key,
)

# Between the 32k tokens of deepseek-coder and the 100k of deepseek-llm; no file that leaves out the name is near it.
_LARGE_VOCABULARY = 65536
_TYPES, _PRE, _ADD_BOS, _TEMPLATE = (
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_template",
)


def _token_types(file: MetadataReader) -> Iterator[Fault]:
    tokens = file.get_strings("tokenizer.ggml.tokens")
    if _TYPES not in file.metadata:
        types = np.full(len(tokens), TokenType.NORMAL, np.int32)
        corrected = _corrected(tokens, types)
        problem, harm = "no token types in the file", "special tokens are taken for text"
        yield Fault("token-types", problem, harm, "told from the tokens' spelling", {_TYPES: corrected})
        return
    types = file.get_array(_TYPES)
    if types.shape != (len(tokens),) or types.dtype.kind not in "iu":
        return  # reading the vocabulary says what is wrong
    corrected = _corrected(tokens, types)
    wrong = np.flatnonzero(corrected != types)
    if not len(wrong):
        return
    as_text = [tokens[i] for i in wrong if corrected[i] == TokenType.CONTROL]
    as_control = [tokens[i] for i in wrong if corrected[i] == TokenType.USER_DEFINED]
    n_padding = len(wrong) - len(as_text) - len(as_control)
    parts = [f"{len(as_text)} special tokens are typed as text ({_some(as_text)})"] if as_text else []
    parts += [f"{len(as_control)} characters are typed as control tokens ({_some(as_control)})"] if as_control else []
    parts += [f"{n_padding} padding tokens are typed as text"] if n_padding else []
    harm = "what the model writes to itself is printed, text that spells a control token acts as one, or text gets lost"
    assumption, is_harmless = "told from their spelling", not (as_text or as_control)
    yield Fault("token-types", " and ".join(parts), harm, assumption, {_TYPES: corrected}, is_harmless)


def _corrected(tokens: list[str], types: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int32]]:
    corrected = types.astype(np.int32)
    for i in np.flatnonzero(corrected == TokenType.CONTROL):
        if tokens[i] in BYTE_OF:  # an added character: old converters said control
            corrected[i] = TokenType.USER_DEFINED
    corrected[[i for i, token in enumerate(tokens) if looks_padding(token)]] = TokenType.UNUSED
    corrected[[i for i, token in enumerate(tokens) if looks_special(token)]] = TokenType.CONTROL
    return corrected


def _some(tokens: list[str]) -> str:
    return ", ".join(tokens[:3]) + (", …" if len(tokens) > 3 else "")


def _pre_tokenizer(file: MetadataReader) -> Iterator[Fault]:
    tokens, types = file.get_strings("tokenizer.ggml.tokens"), file.metadata.get(_TYPES)
    n_tokens = int((types != TokenType.UNUSED).sum()) if isinstance(types, np.ndarray) else len(tokens)
    expected = "deepseek-llm" if n_tokens > _LARGE_VOCABULARY else "deepseek-coder"
    found = file.get_str(_PRE, "default")
    if found == expected:
        return
    harm = "text is split wrongly (digits, line breaks, Chinese), so that the model reads what it never saw in training"
    if found == "default":
        assumption = f"{expected} assumed, as for a vocabulary of {n_tokens} tokens"
        yield Fault("pre-tokenizer", "no pre-tokenizer named in the file", harm, assumption, {_PRE: expected})
    elif found in SPLITS or SPECIAL_ROLES["bos"][1] in tokens:
        problem = f"the pre-tokenizer is {found!r}, where a vocabulary of {n_tokens} tokens has {expected!r}"
        yield Fault("pre-tokenizer", problem, harm, None, {_PRE: expected})


def _special_ids(file: MetadataReader) -> Iterator[Fault]:
    ids = {token: i for i, token in enumerate(file.get_strings("tokenizer.ggml.tokens"))}
    ends = (SPECIAL_ROLES["eos"][1], SPECIAL_ROLES["eot"][1])
    for role, (names, spelling) in SPECIAL_ROLES.items():
        if spelling not in ids:
            continue
        expected, key = ids[spelling], role_key(file, role)
        allowed = [ids[end] for end in ends if end in ids] if role == "eos" else [expected]
        if key is None:
            problem = f"the id of {spelling} ({role}) is not named"
            changes = {f"tokenizer.ggml.{names[0]}_token_id": expected}
            harm = "programs take another token for it, or none"
            is_harmless = role not in ("bos", "eos")  # today's programs find the others by their spelling
            yield Fault("special-ids", problem, harm, "found by its spelling", changes, is_harmless)
        elif file.get_int(key) not in allowed:
            problem = f"{key} is {file.get_int(key)}; {spelling} is {expected}"
            yield Fault(
                "special-ids", problem, "generation does not start, infill or end as trained", None, {key: expected}
            )


def _add_bos(file: MetadataReader) -> Iterator[Fault]:
    if _ADD_BOS not in file.metadata and role_key(file, "bos"):
        problem, assumption = "not said in the file whether text starts with BOS", "assumed that it does"
        harm = "programs leave out the BOS that the model always saw in training"
        yield Fault("add-bos", problem, harm, assumption, {_ADD_BOS: True})


def _chat_template(file: MetadataReader) -> Iterator[Fault]:
    template = file.get_str(_TEMPLATE, "")
    if not is_instruct(file):
        return
    changes = {_TEMPLATE: FAMILY_TEMPLATE}
    harm = "programs that chat put the conversation in a form that the model was not trained on"
    if not template.strip():
        problem = "no chat template, though this is an instruct model"
        yield Fault("chat-template", problem, harm, "the family's assumed", changes)
        return
    ids = {token: i for i, token in enumerate(file.get_strings("tokenizer.ggml.tokens"))}
    found = template_problem(template, ids)
    if found:
        yield Fault("chat-template", f"the chat template {found}", harm, None, changes)


def is_instruct(file: MetadataReader) -> bool:
    """By its name, or because answers end with the instruct models' own token."""
    names = (file.metadata.get(f"general.{key}", "") for key in ("name", "basename", "finetune"))
    eot = SPECIAL_ROLES["eot"][1]
    tokens, eos_key = file.get_strings("tokenizer.ggml.tokens"), role_key(file, "eos")
    eos = file.get_int(eos_key) if eos_key else -1
    return any("instruct" in str(name).lower() for name in names) or (0 <= eos < len(tokens) and tokens[eos] == eot)


# In this order: each sees what the ones before it have set right.
VOCABULARY_RULES: tuple[Rule, ...] = (_token_types, _pre_tokenizer, _special_ids, _add_bos, _chat_template)
