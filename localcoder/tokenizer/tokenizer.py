"""Tokenizer: text to token ids and back, for one vocabulary read from a GGUF file."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from localcoder.errors import TokenizerError
from localcoder.faults import examine, notes_of
from localcoder.tokenizer.byte_level import bytes_of
from localcoder.tokenizer.faults import VOCABULARY_RULES, is_instruct
from localcoder.tokenizer.splits import make_pre_tokenizer
from localcoder.tokenizer.token_index import TokenIndex
from localcoder.tokenizer.vocabulary import SPECIAL_ROLES, MetadataReader, TokenType, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """Byte-level BPE over one vocabulary. Immutable; threads may share it.

    Attributes:
        n_vocab: tokens in the file's list, padding included.
        n_tokens: tokens in use, padding left out.
        bos_id, eos_id, eot_id, fim_prefix_id, fim_suffix_id, fim_middle_id: None where the vocabulary has none.
        stop_ids: ids that end a generation, whichever of them the model was trained to emit.
        add_bos: whether text starts with BOS unless `tokenize` is told otherwise.
        chat_template: Jinja source, or None.
        is_instruct: whether the file's model was tuned to answer instructions.
        notes: what was assumed about the file or is probably wrong in it, one line each.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, name: str = "tokenizer", notes: Sequence[str] = (), is_instruct: bool = False
    ) -> None:
        special = vocabulary.special_ids
        self.name = name
        self.bos_id, self.eos_id, self.eot_id = special["bos"], special["eos"], special["eot"]
        self.fim_prefix_id, self.fim_suffix_id = special["fim_prefix"], special["fim_suffix"]
        self.fim_middle_id = special["fim_middle"]
        self.add_bos = vocabulary.add_bos
        self.chat_template = vocabulary.chat_template
        self.is_instruct = is_instruct
        self.notes = list(notes)
        self._tokens, self._types, self._ids = vocabulary.tokens, vocabulary.types, vocabulary.ids
        self.n_vocab = len(self._tokens)
        self.n_tokens = int((self._types != TokenType.UNUSED).sum())
        # An instruct model that completes plain text ends it with the base model's EOS.
        ends = {self.eos_id, self.eot_id, *(self._ids.get(SPECIAL_ROLES[role][1]) for role in ("eos", "eot"))}
        self.stop_ids = frozenset(i for i in ends if i is not None)
        self._bytes: list[bytes | None] = [None] * self.n_vocab
        self._special = {self._tokens[i]: int(i) for i in np.flatnonzero(self._types == TokenType.CONTROL)}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_pattern = (
            re.compile("|".join(re.escape(text) for text in longest_first)) if longest_first else None
        )
        self._rust = _build(vocabulary, name)

    @classmethod
    def from_gguf(cls, file: MetadataReader) -> Tokenizer:
        """The tokenizer of a GGUF file, from its metadata alone.

        Raises:
            GGUFError: a key is missing or of another type.
            TokenizerError: the metadata do not make a vocabulary of this family.
        """
        completed, faults = examine(file, VOCABULARY_RULES)
        name, notes = str(file.path), notes_of(faults)
        return cls(read_vocabulary(completed), name=name, notes=notes, is_instruct=is_instruct(completed))

    @functools.cached_property
    def index(self) -> TokenIndex:
        """The tokens by their bytes; made when first asked for."""
        return TokenIndex(self)

    def unsampleable(self, n_vocab: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """bool [n_vocab]: the rows of a model's output that no token stands behind and that must never be sampled."""
        mask = np.ones(n_vocab, np.bool_)
        known = self._types[:n_vocab]
        mask[: len(known)] = known == TokenType.UNUSED
        return mask

    def tokenize(
        self, text: str, *, bos: bool | None = None, parse_special: bool = False, dropped: str = ""
    ) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text; what spells a special token stays text.
            bos: whether to start with BOS; None does as the model was trained.
            parse_special: reads special tokens where they are spelled. For prompts that a template made, never for text
                from a user.
            dropped: a character that is no part of the text; it keeps apart what `guard` put it into.

        Raises:
            TokenizerError: the text holds a lone surrogate, or BOS is asked for and there is none.
        """
        ids: list[int] = []
        if self.add_bos if bos is None else bos:
            if self.bos_id is None:
                raise TokenizerError(f"{self.name}: the vocabulary has no BOS token")
            ids.append(self.bos_id)
        at = 0
        if parse_special and self._special_pattern is not None:
            for match in self._special_pattern.finditer(text):
                ids += self._tokenize_plain(_without(text[at : match.start()], dropped))
                ids.append(self._special[match[0]])
                at = match.end()
        return ids + self._tokenize_plain(_without(text[at:], dropped))

    def ids_with(self, some_bytes: bytes) -> list[int]:
        """Ids of the tokens that hold one of these bytes."""
        return [i for i in range(self.n_vocab) if set(self.token_bytes(i)) & set(some_bytes)]

    def guard(self, text: str, mark: str) -> str:
        """`text` with `mark`, a character that it does not hold, in whatever spells a special token or may begin one
        that goes on behind the text."""
        if self._special_pattern is None:
            return text
        guarded = self._special_pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        for n in range(min(max(map(len, self._special)), len(guarded)), 0, -1):
            if any(special.startswith(guarded[-n:]) for special in self._special):
                at = len(guarded) - n + 1
                return guarded[:at] + mark + guarded[at:]
        return guarded

    def spelling_of(self, token_id: int | None) -> str:
        """How the vocabulary spells a token; "" for None."""
        return "" if token_id is None else self._tokens[token_id]

    def _tokenize_plain(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise TokenizerError(f"the text is not Unicode: character {e.start} is half a surrogate pair") from None
        with rust_errors(self.name):
            return self._rust.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, as UTF-8 that may start or end within a character; special tokens add nothing.

        Raises:
            TokenizerError: there is no such token.
        """
        if not 0 <= token_id < self.n_vocab:
            raise TokenizerError(f"{self.name}: no token {token_id}: the vocabulary has {self.n_vocab}")
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._make_bytes(token_id)
        return known

    def _make_bytes(self, token_id: int) -> bytes:
        token = self._tokens[token_id]
        kind = self._types[token_id]
        if kind == TokenType.NORMAL:
            return bytes_of(token)
        return token.encode() if kind == TokenType.USER_DEFINED else b""

    def _shown_bytes(self, token_id: int, special: bool) -> bytes:
        found = self.token_bytes(token_id)
        return self._tokens[token_id].encode() if special and not found else found

    def detokenize(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids; broken UTF-8 becomes U+FFFD. `special` spells special tokens, which else add nothing.

        `detokenize(tokenize(text)) == text` for every text.

        Raises:
            TokenizerError: there is no such token.
        """
        return b"".join(self._shown_bytes(i, special) for i in ids).decode("utf-8", errors="replace")

    def id_of(self, token_text: str) -> int | None:
        """The id of a token by its spelling in the vocabulary, None if there is none."""
        return self._ids.get(token_text)


def _without(text: str, dropped: str) -> str:
    return text.replace(dropped, "") if dropped else text


class StreamDecoder:
    """Detokenizes as ids arrive: what it returns never ends within a character."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._n_skipped = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def skip(self, n_bytes: int) -> None:
        """Leaves out that many bytes of what comes."""
        self._n_skipped += n_bytes

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; bytes of an unfinished character are held back."""
        data = b"".join(self._tokenizer._shown_bytes(i, self._special) for i in ids)
        n_skipped = min(self._n_skipped, len(data))
        self._n_skipped -= n_skipped
        return self._decoder.decode(data[n_skipped:])

    def flush(self) -> str:
        """Ends the text: U+FFFD for a character that never was finished, else nothing."""
        return self._decoder.decode(b"", final=True)


@contextmanager
def rust_errors(name: str) -> Iterator[None]:
    """Turns whatever the `tokenizers` library raises, its panics included, into TokenizerError."""
    try:
        yield
    except Exception as e:
        raise TokenizerError(f"{name}: {' '.join(str(e).split())}") from None
    except BaseException as e:
        if type(e).__name__ != "PanicException":  # not an Exception, and its class cannot be imported
            raise
        raise TokenizerError(f"{name}: the vocabulary breaks the tokenizers library: {e}") from None


def _build(vocabulary: Vocabulary, name: str) -> tokenizers.Tokenizer:
    """BPE over normal tokens, with user-defined ones matched first.

    Special and unused tokens are left out: no text can become one of them, not by a forged merge either.
    """
    with rust_errors(name):
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as RustTokenizer
        from tokenizers.models import BPE

        left_out = np.flatnonzero((vocabulary.types == TokenType.CONTROL) | (vocabulary.types == TokenType.UNUSED))
        vocab = dict(vocabulary.ids)
        for i in left_out:
            del vocab[vocabulary.tokens[i]]
        rust = RustTokenizer(BPE(vocab=vocab, merges=vocabulary.merges))
        rust.pre_tokenizer = make_pre_tokenizer(vocabulary.pre)
        added = [vocabulary.tokens[i] for i in np.flatnonzero(vocabulary.types == TokenType.USER_DEFINED)]
        rust.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
        return rust
