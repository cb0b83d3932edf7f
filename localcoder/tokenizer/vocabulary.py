"""What a GGUF file says about its vocabulary, checked: tokens, what each is for, merges, special ids.

Strict: where files of some converters are silent or unreliable, the rules of `faults.py` come first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from localcoder.errors import TokenizerError
from localcoder.tokenizer.byte_level import NEEDED, bytes_of
from localcoder.tokenizer.splits import SPLITS

TypeArray = np.ndarray[Any, np.dtype[np.int32]]


class MetadataReader(Protocol):
    """What is needed of a GGUF file; `localcoder.files.GGUFFile` is one.

    The getters raise GGUFError where a key is missing (and no default is given) or of another type.
    """

    path: Path
    metadata: dict[str, Any]

    def get_int(self, key: str, default: int | None = None) -> int: ...
    def get_bool(self, key: str, default: bool | None = None) -> bool: ...
    def get_str(self, key: str, default: str | None = None) -> str: ...
    def get_strings(self, key: str) -> list[str]: ...
    def get_array(self, key: str) -> np.ndarray[Any, Any]: ...


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1  # made by merges, spelled in the byte alphabet
    UNKNOWN = 2
    CONTROL = 3  # never text
    USER_DEFINED = 4  # text that is matched before BPE, spelled as it is
    UNUSED = 5  # a row of padding: never made, never sampled
    BYTE = 6


# Role -> metadata keys (`tokenizer.ggml.…_token_id`, newest first) and the family's spelling of the token.
SPECIAL_ROLES = {
    "bos": (("bos",), "<｜begin▁of▁sentence｜>"),
    "eos": (("eos",), "<｜end▁of▁sentence｜>"),
    "eot": (("eot",), "<|EOT|>"),
    "fim_prefix": (("fim_pre", "prefix"), "<｜fim▁begin｜>"),
    "fim_suffix": (("fim_suf", "suffix"), "<｜fim▁hole｜>"),
    "fim_middle": (("fim_mid", "middle"), "<｜fim▁end｜>"),
}

_SPECIAL = re.compile(r"<\|[^|\s]+\|>|<｜[^｜\s]+｜>|<pad>")
_PADDING = re.compile(r"\[PAD\d+\]|<dummy\d+>")


def looks_special(token: str) -> bool:
    """Whether a token is spelled like this family's special ones."""
    return token[:1] == "<" and _SPECIAL.fullmatch(token) is not None


def looks_padding(token: str) -> bool:
    """Whether a token is spelled as converters spell the rows that pad a vocabulary."""
    return token[:1] in "[<" and _PADDING.fullmatch(token) is not None


@dataclass
class Vocabulary:
    """A vocabulary that has passed all checks.

    Attributes:
        tokens: spelling by id, n_vocab of them; types: TokenType by id, int32 [n_vocab]; ids: id by spelling.
        merges: pairs of spellings, first come first merged.
        pre: name of the pre-tokenizer, one of SPLITS.
        special_ids: role, one of SPECIAL_ROLES, to id or None.
    """

    tokens: list[str]
    types: TypeArray
    merges: list[tuple[str, str]]
    pre: str
    special_ids: dict[str, int | None]
    add_bos: bool
    chat_template: str | None
    ids: dict[str, int]


def read_vocabulary(file: MetadataReader) -> Vocabulary:
    """Reads and checks the `tokenizer.*` metadata of a file.

    Raises:
        GGUFError: a key is missing or of another type.
        TokenizerError: the values do not make a byte-level BPE vocabulary of this family.
    """
    model = file.get_str("tokenizer.ggml.model")
    if model != "gpt2":
        hint = " (a SentencePiece conversion, which splits this family's text wrongly)" if model == "llama" else ""
        raise TokenizerError(f"{file.path}: tokenizer.ggml.model is {model!r}{hint}, expected 'gpt2': convert it anew")
    tokens = file.get_strings("tokenizer.ggml.tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        i = next(i for i, token in enumerate(tokens) if ids[token] != i)
        raise TokenizerError(
            f"{file.path}: token {tokens[i][:40]!r} is in the vocabulary twice: {i} and {ids[tokens[i]]}"
        )
    if "" in ids:
        raise TokenizerError(f"{file.path}: token {ids['']} is empty")
    types = _read_types(file, tokens)
    special_ids = _find_special_ids(file, types)
    missing = [byte for c, byte in NEEDED.items() if c not in ids or types[ids[c]] != TokenType.NORMAL]
    if missing:
        raise TokenizerError(
            f"{file.path}: its vocabulary has no token for the byte 0x{missing[0]:02X} ({len(missing)} missing)"
        )
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=_read_merges(file, tokens, types),
        pre=_read_pre(file),
        special_ids=special_ids,
        add_bos=special_ids["bos"] is not None and file.get_bool("tokenizer.ggml.add_bos_token"),
        chat_template=file.get_str("tokenizer.chat_template", "") or None,
        ids=ids,
    )


def _read_types(file: MetadataReader, tokens: list[str]) -> TypeArray:
    key = "tokenizer.ggml.token_type"
    found = file.get_array(key)
    if len(found) != len(tokens):
        raise TokenizerError(f"{file.path}: {key} has {len(found)} entries for {len(tokens)} tokens")
    if found.dtype.kind not in "iu" or found.min(initial=1) < 1 or found.max(initial=1) > max(TokenType):
        raise TokenizerError(f"{file.path}: {key} holds values that are not token types (1 to {max(TokenType):d})")
    types = found.astype(np.int32)
    types[types == TokenType.BYTE] = TokenType.NORMAL
    types[types == TokenType.UNKNOWN] = TokenType.CONTROL
    return types


def role_key(file: MetadataReader, role: str) -> str | None:
    """The metadata key by which a file names the token of a role of SPECIAL_ROLES, None if it does not."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in SPECIAL_ROLES[role][0])
    return next((key for key in keys if key in file.metadata), None)


def _find_special_ids(file: MetadataReader, types: TypeArray) -> dict[str, int | None]:
    found: dict[str, int | None] = dict.fromkeys(SPECIAL_ROLES)
    for role in SPECIAL_ROLES:
        key = role_key(file, role)
        if key is None:
            continue
        i = file.get_int(key)
        if not 0 <= i < len(types):
            raise TokenizerError(f"{file.path}: {key} is {i}, the vocabulary has {len(types)} tokens")
        if types[i] != TokenType.NORMAL:
            types[i] = TokenType.CONTROL
        found[role] = i
    return found


def _read_merges(file: MetadataReader, tokens: list[str], types: TypeArray) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.merges"
    found = file.metadata.get(key)
    # A writer leaves out an empty array, or writes it without a type.
    if found is None or (isinstance(found, np.ndarray) and not found.size):
        if any(len(tokens[i]) > 1 for i in np.flatnonzero(types == TokenType.NORMAL)):
            raise TokenizerError(f"{file.path}: {key} is missing: no token of several bytes could be made")
        return []
    merges = []
    for i, text in enumerate(file.get_strings(key)):
        left, _, right = text.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(f"{file.path}: merge {i} is {text[:40]!r}, expected two tokens with one space between")
        merges.append((left, right))
    # The same id would stand for the spelling and for the bytes that it spells.
    two_faced = {tokens[i] for i in np.flatnonzero(types == TokenType.USER_DEFINED) if _has_two_readings(tokens[i])}
    for left, right in merges if two_faced else ():
        if left + right in two_faced:
            raise TokenizerError(f"{file.path}: merge {left!r} {right!r} makes a token that is typed as text to match")
    return merges


def _has_two_readings(token: str) -> bool:
    return len(token) > 1 and bytes_of(token) != token.encode()


def _read_pre(file: MetadataReader) -> str:
    pre = file.get_str("tokenizer.ggml.pre")
    if pre not in SPLITS:
        raise TokenizerError(f"{file.path}: tokenizer.ggml.pre is {pre!r}; supported are {', '.join(SPLITS)}")
    return pre
