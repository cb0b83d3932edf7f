"""The prompts that the family was trained to infill and to continue repositories with. Every route to the model, from
Python, the terminal or a server, gets its token ids here.

Infill is prefix, suffix, middle: BOS, FIM-prefix, text before the hole, FIM-suffix, text after it, FIM-middle; other
files come first, each led by `#` and its path, for every language
(https://github.com/deepseek-ai/DeepSeek-Coder, "Repository Level Code Completion").

Special tokens go in by id. Text that spells one stays text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from localcoder.errors import ModelError
from localcoder.tokenizer.tokenizer import Tokenizer

N_MARKERS = 4  # tokens of a prompt that stand for no text
_MOST_HEALED = 8  # tokens at the end of the prefix that may be parts of one
_SEAM = 64  # characters on each side of the hole that are looked at for a split word


@dataclass(frozen=True)
class InfillPrompt:
    """A prompt, and what the model has to repeat because it was taken out of it at the hole's edges.

    Attributes:
        ids: token ids.
        begun: token ids that stand for the text just before the hole. The answer begins with them, or with one longer
            token in their place.
        after: text that the answer has to end with; it lies behind the hole.
    """

    ids: tuple[int, ...]
    begun: tuple[int, ...] = ()
    after: str = ""


def require_infill(tokenizer: Tokenizer) -> None:
    """ModelError if this vocabulary has no tokens to infill with."""
    roles = (tokenizer.fim_prefix_id, tokenizer.fim_suffix_id, tokenizer.fim_middle_id)
    if None in roles:
        raise ModelError(
            tokenizer.name,
            "this model cannot infill: its vocabulary has no tokens for it, as with deepseek-coder-7b-v1.5, which was "
            "never trained to; take a base model of 1.3B, 5.7B, 6.7B or 33B",
        )


def repository_text(files: Mapping[str, str]) -> str:
    """Files one after another, each led by its path, as the models were trained."""
    return "".join(f"#{path}\n{text}" + ("" if text.endswith("\n") else "\n") for path, text in files.items())


def infill_prompt(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    *,
    path: str | None = None,
    extra_files: Mapping[str, str] | None = None,
    heal_prefix: bool = True,
    heal_suffix: bool = True,
) -> InfillPrompt:
    """Token ids for the text between `prefix` and `suffix`.

    Args:
        path: the file's name; said to the model only where there are other files, which have theirs.
        extra_files: text by path, in the order in which the model is to see them.
        heal_prefix: takes out the tokens at the end of the prefix that may be the beginning of a longer one.
        heal_suffix: takes out the end of a word that the hole splits.

    Raises:
        ModelError: a model that cannot infill.
        TokenizerError: the text holds a lone surrogate.
    """
    require_infill(tokenizer)
    after = _split_word_end(tokenizer, prefix, suffix) if heal_suffix else ""
    text = repository_text(extra_files) if extra_files else ""
    if extra_files and path is not None:
        text += f"#{path}\n"
    ids = tokenizer.tokenize(text, bos=False) + tokenizer.tokenize(prefix, bos=False)
    n_left = len(ids) - (_n_unfinished(tokenizer, ids, prefix) if heal_prefix and prefix else 0)
    ids, begun = ids[:n_left], ids[n_left:]
    bos = [tokenizer.bos_id] if tokenizer.add_bos else []
    behind = tokenizer.tokenize(suffix[len(after) :], bos=False)
    parts = [*bos, tokenizer.fim_prefix_id, *ids, tokenizer.fim_suffix_id, *behind, tokenizer.fim_middle_id]
    return InfillPrompt(tuple(i for i in parts if i is not None), tuple(begun), after)


def _n_unfinished(tokenizer: Tokenizer, ids: list[int], prefix: str) -> int:
    """How many tokens at the end may be the beginning of one longer token."""
    if prefix[-1] in "\r\n" or prefix[-1].isdigit():
        return 0  # the pre-tokenizer ends a token there whatever follows
    end, found = b"", 0
    n_line = len(prefix[prefix.rfind("\n") + 1 :].encode())
    for n in range(1, min(len(ids), _MOST_HEALED) + 1):
        end = tokenizer.token_bytes(ids[-n]) + end
        if len(end) > n_line:
            break
        if tokenizer.index.is_extended(end):
            found = n
    return found


def _split_word_end(tokenizer: Tokenizer, prefix: str, suffix: str) -> str:
    """The characters at the start of `suffix` that share a token with the end of `prefix`, if the hole is in a word."""
    if not (prefix and suffix and _is_word(prefix[-1]) and _is_word(suffix[0])):
        return ""
    head = prefix[-_SEAM:].rsplit("\n", 1)[-1]
    tail = suffix[:_SEAM].split("\n", 1)[0]
    hole = len(head.encode())
    at = 0
    for i in tokenizer.tokenize(head + tail, bos=False):
        end = at + len(tokenizer.token_bytes(i))
        if at < hole < end:
            taken = tail.encode()[: end - hole].decode(errors="ignore")
            return taken if len(taken.encode()) == end - hole else ""  # a token may end within a character
        at = end
    return ""


def _is_word(c: str) -> bool:
    return c.isalnum() or c == "_"
