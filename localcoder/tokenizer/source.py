"""A Hugging Face tokenizer (tokenizer.json and what lies beside it) as GGUF metadata.

tokenizer.json is read as it is, never through transformers, whose version 5 replaces this family's pre-tokenizer. What
cannot be said in GGUF is refused, and what was said is proved: ids from the written file against tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from localcoder.errors import TokenizerError
from localcoder.tokenizer.proof import prove_equal
from localcoder.tokenizer.splits import recognize_pre_tokenizer
from localcoder.tokenizer.tokenizer import Tokenizer
from localcoder.tokenizer.vocabulary import SPECIAL_ROLES, MetadataReader, TokenType, looks_special

if TYPE_CHECKING:
    import gguf


class CheckpointFiles(Protocol):
    """What is needed of a checkpoint folder, such as a `localcoder.files.Checkpoint`; they raise CheckpointError."""

    folder: Path
    config: dict[str, Any]

    @property
    def tokenizer_path(self) -> Path: ...
    @property
    def tokenizer(self) -> dict[str, Any]: ...
    @property
    def tokenizer_config(self) -> dict[str, Any]: ...
    @property
    def generation_config(self) -> dict[str, Any]: ...
    @property
    def chat_template(self) -> str | None: ...


class SourceTokenizer:
    """The tokenizer of a checkpoint folder.

    Attributes:
        tokens: id -> spelling, None for ids that nothing has.
        types: id -> TokenType, chosen as llama.cpp's converter does.
        merges: "left right", most frequent first.
        pre: the name of the pre-tokenizer.
        special_ids: role (those of SPECIAL_ROLES and `pad`) -> id, only what there is.
        add_bos, add_eos: whether text starts with BOS, ends with EOS.
        chat_template: Jinja source, or None.

    Raises:
        CheckpointError: a file is missing or broken.
        TokenizerError: it is not a byte-level BPE of this family.
    """

    def __init__(self, checkpoint: CheckpointFiles) -> None:
        self.path = checkpoint.tokenizer_path
        if not self.path.exists() and (checkpoint.folder / "tokenizer.model").exists():
            raise TokenizerError(
                f"{checkpoint.folder}: has a SentencePiece tokenizer.model; this family has a tokenizer.json instead"
            )
        source = checkpoint.tokenizer
        model = self._check_model(source)
        try:
            self.pre = recognize_pre_tokenizer(source.get("pre_tokenizer"))
        except TokenizerError as e:
            raise TokenizerError(f"{self.path}: {e}") from None
        self.tokens, self.types = self._read_tokens(model, source.get("added_tokens") or [])
        self.merges = list(self._read_merges(model))
        self.special_ids = self._find_special_ids(checkpoint)
        self.add_bos, self.add_eos = self._read_template(source.get("post_processor"), checkpoint.tokenizer_config)
        self.chat_template = checkpoint.chat_template
        for what, text in (("token", "".join(filter(None, self.tokens))), ("chat template", self.chat_template or "")):
            try:
                text.encode()
            except UnicodeEncodeError:
                self._refuse(f"a {what} holds half a surrogate pair")

    def _refuse(self, problem: str) -> NoReturn:
        raise TokenizerError(f"{self.path}: {problem}")

    def _check_model(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        model = source.get("model")
        if not isinstance(model, dict):
            self._refuse("has no model")
        kind = model.get("type", "BPE")
        decoder = source.get("decoder")
        decoder_kind = decoder.get("type") if isinstance(decoder, dict) else None
        if kind != "BPE" or model.get("byte_fallback") or decoder_kind != "ByteLevel":
            self._refuse(f"is a {kind} tokenizer with decoder {decoder_kind}; this family has byte-level BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
            if model.get(key):
                self._refuse(f"its model has {key}={model[key]!r}, which GGUF cannot say for this family")
        normalizer = source.get("normalizer")
        if normalizer and normalizer != {"type": "Sequence", "normalizers": []}:
            self._refuse(f"normalizes text ({str(normalizer)[:60]}), which GGUF cannot say for this family")
        return model

    def _read_tokens(self, model: Mapping[str, Any], added: Any) -> tuple[list[str | None], list[TokenType]]:
        vocab = model.get("vocab")
        if not isinstance(vocab, dict) or not isinstance(added, list):
            self._refuse("has no vocabulary or no list of added tokens")
        found: dict[int, tuple[str, TokenType]] = {}
        for token, i in vocab.items():
            if not self._is_id(i) or i in found:
                self._refuse(f"token {token[:40]!r} has id {i!r}, expected one of its own")
            found[i] = token, TokenType.NORMAL
        n_listed = len(vocab) + len(added)
        for entry in added:
            match entry:
                case {"id": i, "content": str(token), "special": bool(special)} if self._is_id(i) and token:
                    pass
                case _:
                    self._refuse(f"has a malformed added token: {str(entry)[:80]}")
            if any(entry.get(key) for key in ("single_word", "lstrip", "rstrip")):
                self._refuse(f"added token {token[:40]!r} matches text in a way that GGUF cannot say")
            if found.get(i, (token,))[0] != token or vocab.get(token, i) != i:
                self._refuse(f"added token {token[:40]!r} and the vocabulary disagree on id {i}")
            found[i] = token, TokenType.CONTROL if special or looks_special(token) else TokenType.USER_DEFINED
        if not found or max(found) >= 2 * n_listed:  # bounds the list below by the file's size
            self._refuse(f"its ids run to {max(found, default=0)} for {n_listed} tokens")
        nothing = None, TokenType.UNUSED
        pairs = [found.get(i, nothing) for i in range(max(found) + 1)]
        return [token for token, _ in pairs], [kind for _, kind in pairs]

    @staticmethod
    def _is_id(i: object) -> bool:
        return isinstance(i, int) and not isinstance(i, bool) and i >= 0

    def _read_merges(self, model: Mapping[str, Any]) -> Iterator[str]:
        merges = model.get("merges")
        if not isinstance(merges, list):
            self._refuse("has no merges")
        for i, merge in enumerate(merges):
            match merge.split(" ") if isinstance(merge, str) else merge:
                case [str(left), str(right)] if left and right and " " not in left + right:
                    yield f"{left} {right}"
                case _:
                    self._refuse(f"merge {i} is {str(merge)[:40]!r}, expected two tokens")

    def _find_special_ids(self, checkpoint: CheckpointFiles) -> dict[str, int]:
        """tokenizer_config.json's tokens first, then the ids in the other configs, then the family's spelling."""
        ids = {token: i for i, token in enumerate(self.tokens) if token is not None}
        spelled = {role: spelling for role, (_, spelling) in SPECIAL_ROLES.items()}
        found = {}
        for role in (*spelled, "pad"):
            candidates: list[object] = []
            if role in ("bos", "eos", "pad"):
                token = checkpoint.tokenizer_config.get(f"{role}_token")
                content = token.get("content") if isinstance(token, dict) else token
                candidates.append(ids.get(content) if isinstance(content, str) else None)
                for config in (checkpoint.config, checkpoint.generation_config):
                    named = config.get(f"{role}_token_id")
                    candidates.append(named[0] if isinstance(named, list) and named else named)
            candidates.append(ids.get(spelled.get(role, "")))
            for i in candidates:
                if isinstance(i, int) and self._is_id(i) and i < len(self.tokens):
                    found[role] = i
                    break
        return found

    def _read_template(self, processor: Any, tokenizer_config: Mapping[str, Any]) -> tuple[bool, bool]:
        """What tokenizer_config.json says on BOS and EOS, else what tokenizer.json does, else what this family does."""
        ends: list[int | None] = [self.special_ids.get("bos"), None]
        steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
        for step in steps if isinstance(steps, list) else []:
            match step:
                case {"type": "TemplateProcessing", "single": [first, *rest]}:
                    ends = [self._template_id(first), self._template_id(rest[-1] if rest else None)]
        says = []
        for role, end in zip(("bos", "eos"), ends):
            said = tokenizer_config.get(f"add_{role}_token")
            says.append(
                role in self.special_ids and (said if isinstance(said, bool) else end == self.special_ids[role])
            )
        return says[0], says[1]

    def _template_id(self, piece: Any) -> int | None:
        match piece:
            case {"SpecialToken": {"id": str(token)}} if token in self.tokens:
                return self.tokens.index(token)
        return None

    def add_metadata(self, writer: gguf.GGUFWriter, n_vocab: int) -> None:
        """Adds the `tokenizer.*` keys, the vocabulary padded to `n_vocab` rows that are never sampled.

        Raises:
            TokenizerError: there are more tokens than rows.
        """
        n_pad = n_vocab - len(self.tokens)
        if n_pad < 0:
            self._refuse(f"has {len(self.tokens)} tokens; config.json's vocab_size is {n_vocab}")
        tokens = [f"[PAD{i}]" if token is None else token for i, token in enumerate([*self.tokens, *[None] * n_pad])]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(tokens)
        writer.add_token_types([*self.types, *[TokenType.UNUSED] * n_pad])
        writer.add_token_merges(self.merges)
        gguf_names = {role: keys[0] for role, (keys, _) in SPECIAL_ROLES.items()} | {"pad": "padding"}
        for role, i in self.special_ids.items():
            writer.add_uint32(f"tokenizer.ggml.{gguf_names[role]}_token_id", i)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)

    def verify(self, written: MetadataReader) -> None:
        """Proves that a written GGUF file tokenizes as tokenizer.json does.

        Raises:
            TokenizerError: it does not; the message shows the first difference.
        """
        prove_equal(Tokenizer.from_gguf(written), self.path)
