"""`Coder`: a model file, opened, as a script uses it."""

from __future__ import annotations

import contextlib
import importlib.resources
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from localcoder.assist.hygiene import ALL_RULES, Rules, Scope
from localcoder.backends.select import is_on_cpu, open_backend
from localcoder.errors import BackendError, FileError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import N_UBATCH, Engine
from localcoder.quants.spec import Float32
from localcoder.session.generation import Completion, Generation
from localcoder.session.infill import Infill, InfillRequest
from localcoder.session.options import ANSWER_SHARE, GenerationArguments, GenerationOptions
from localcoder.session.pool import SessionPool
from localcoder.session.saved import load_session, save_session
from localcoder.tokenizer.chat import Message, chat_prompt, check_messages, fit_history
from localcoder.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

log = logging.getLogger("localcoder")
INSTRUCT_NOTE = (
    "this model was tuned to answer instructions, which unlearns infilling: a base model fits better into a hole"
)
BASE_NOTE = "this model was not tuned to answer instructions: it may go on with the question instead"

EMBEDDED_MODEL = "python-9m.gguf"


class Coder:
    """A model, ready to write code.

    Safe for several threads: every call works on a timeline of its own, and their steps take turns. What a call
    computed is kept for later calls whose prompts begin the same way.

    Args:
        path: a GGUF file; default: the small demonstration model inside the package.
        n_ctx: positions of the context; default: what the model was trained for.
        threads: default: the cores this process may use.
        device: "auto", or a device that `localcoder devices` lists.
        n_sequences: how many full contexts the KV cache holds, for that many long texts at the same time.
        n_ubatch: most tokens computed in one step.
        kv_type: format of the KV cache: "f16", or "q8_0" or "q4_0", which take a half or a quarter of its memory.

    Attributes:
        path: the file.
        notes: what was assumed about the file or is probably wrong in it (`localcoder doctor` explains and repairs it);
            also logged to the logger "localcoder", on one line.

    Raises:
        LocalcoderError: the file, an option or the device cannot be used; `localcoder.errors` has the tree.

    Example:
        >>> from localcoder import Coder
        >>> with Coder() as coder:
        ...     body = coder.complete("def add(a, b):", max_tokens=8)
        >>> isinstance(body, str)
        True
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        n_sequences: int = 1,
        n_ubatch: int = N_UBATCH,
        kv_type: str = "f16",
    ) -> None:
        with contextlib.ExitStack() as resources:
            self.path = Path(path) if path is not None else resources.enter_context(embedded_model())
            file = GGUFFile.open(self.path)
            self._tokenizer = Tokenizer.from_gguf(file)

            def open_engine(device: str) -> Engine:
                with contextlib.ExitStack() as opened:
                    backend = open_backend(device, threads)
                    opened.callback(backend.close)
                    try:
                        engine = Engine(
                            file, backend, n_ctx=n_ctx, n_sequences=n_sequences, n_ubatch=n_ubatch, kv_type=kv_type
                        )
                    except BackendError as refusal:
                        if device != "auto" or is_on_cpu(backend):
                            raise
                        log.warning("%s; computing on the CPU", refusal)
                        return open_engine("cpu")
                    opened.callback(engine.close)
                    resources.push(opened.pop_all())
                    return engine

            self._engine = open_engine(device)
            self._resources = resources.pop_all()
        self._closed = False
        self._pool = SessionPool(self._engine)
        self.notes = [*self._tokenizer.notes, *self._engine.notes]
        if self.notes:
            log.warning("%s: %s", self.path.name, "; ".join(self.notes))

    def complete(self, prompt: str, **options: Unpack[GenerationArguments]) -> str:
        """The text that the model writes after `prompt` (which is not repeated).

        Args:
            prompt: text; BOS is put before it as the file says. What spells a special token stays text.
            options: max_tokens=256, temperature=0.0, top_k=40, top_p=0.95, min_p=0.0, repeat_penalty=1.0,
                repeat_last_n=64, seed=None, stop=(); `GenerationOptions` says what each does and may be.

        Raises:
            OptionError: an option out of its range, or unknown.
            ContextLengthError: the prompt is longer than the context.

        Example:
            >>> with Coder() as coder:
            ...     line = coder.complete("import os\\nimport ", stop="\\n", max_tokens=8)
            >>> "\\n" in line
            False
        """
        return self.generate(prompt, **options).text

    def stream(self, prompt: str, **options: Unpack[GenerationArguments]) -> Iterator[str]:
        """As `complete`, but yields the text piece by piece as it is written.

        Leaving the loop early ends the generation. A wrong argument raises here, not at the first piece.

        Example:
            >>> with Coder() as coder:
            ...     for piece in coder.stream("for i in ", max_tokens=8):
            ...         print(piece, end="", flush=True)  # doctest: +SKIP
        """
        return iter(self.start(prompt, **options))

    def generate(self, prompt: str, **options: Unpack[GenerationArguments]) -> Completion:
        """As `complete`, with the finish reason, token counts and timings.

        Example:
            >>> with Coder() as coder:
            ...     coder.generate("x = ", max_tokens=2).finish_reason
            'length'
        """
        generation = self.start(prompt, **options)
        for _ in generation:
            pass
        return generation.completion

    def start(self, prompt: str, **options: Unpack[GenerationArguments]) -> Generation:
        """A generation that has not begun: iterate over it for the text, then see its `completion`."""
        checked = _checked(options)
        self._require_open()
        tokens = self._tokenizer.tokenize(prompt)
        return Generation(self._pool.lend, self._tokenizer, self.n_vocab, tokens, checked)

    def infill(
        self,
        prefix: str,
        suffix: str = "",
        *,
        path: str | None = None,
        extra_files: Mapping[str, str] | None = None,
        scope: Scope | None = None,
        rules: Rules = ALL_RULES,
        **options: Unpack[GenerationArguments],
    ) -> str:
        """The text that belongs between `prefix` and `suffix`; "" where the model has nothing to say.

        What does not fit into the context is left out by importance: near the hole first, whole lines, imports and the
        headers of what encloses the hole kept.

        Args:
            prefix, suffix: text before and after the hole. What spells a special token stays text.
            path: the file's name, which tells what a comment looks like.
            extra_files: other files of the repository, text by path, the most important last.
            scope: how much is wanted at most: "line", "block" (up to the next line that is indented less) or "function"
                (up to the end of the enclosing one); None: until the model ends its text.
            rules: which rules tidy the result; `localcoder.assist.hygiene.Rules` has them.
            options: as for `complete`.

        Raises:
            ModelError: the model was not trained to infill.
            OptionError: an option out of its range, or unknown.
            ContextLengthError: max_tokens leaves no room for a prompt.

        Example:
            >>> with Coder() as coder:
            ...     middle = coder.infill("def area(r):\\n    return ", "\\n", scope="line", max_tokens=12)
            >>> "\\n" in middle
            False
        """
        request = InfillRequest(prefix, suffix, path, extra_files or {}, scope, rules)
        return self.start_infill(request, **options).run().text

    def start_infill(self, request: InfillRequest, **options: Unpack[GenerationArguments]) -> Infill:
        """An infill that has not begun: see its `context`, and `run` it for the completion.

        Example:
            >>> from localcoder import InfillRequest
            >>> with Coder() as coder:
            ...     done = coder.start_infill(InfillRequest("import os\\n", "\\nprint(path)\\n"), max_tokens=4).run()
            >>> done.n_tokens <= 4
            True
        """
        checked = _checked(options)
        self._require_open()
        if self.is_instruct:
            log.warning("%s: %s", self.path.name, INSTRUCT_NOTE)
        return Infill(request, self._pool.lend, self._tokenizer, self.n_vocab, self.n_ctx, checked)

    def chat(
        self, messages: str | Sequence[Message], *, system: str | None = None, **options: Unpack[GenerationArguments]
    ) -> str:
        """The model's answer in a conversation, put into the form that it was tuned on.

        If the conversation outgrows the context, its oldest turns are left out, whole ones.

        Args:
            messages: the user's text, or the conversation: dictionaries of "role" ("system", "user" or "assistant") and
                "content". What spells a special token stays text.
            system: the system prompt, put before the messages; None: the template's own.
            options: as for `complete`.

        Raises:
            TokenizerError: the file's chat template is broken.
            OptionError: an option out of its range, or unknown; a message that is none.
            ContextLengthError: the last message alone is longer than the context.

        Example:
            >>> with Coder() as coder:
            ...     answer = coder.chat("Write a function that adds two numbers.", max_tokens=8)
            >>> isinstance(answer, str)
            True
        """
        generation = self.start_chat(messages, system=system, **options)
        return "".join(generation)

    def start_chat(
        self, messages: str | Sequence[Message], *, system: str | None = None, **options: Unpack[GenerationArguments]
    ) -> Generation:
        """An answer that has not begun: iterate over it for the text, then see its `completion`."""
        checked = _checked(options)
        self._require_open()
        told = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        if system is not None:
            told.insert(0, {"role": "system", "content": system})
        if not self.is_instruct:
            log.warning("%s: %s", self.path.name, BASE_NOTE)
        check_messages(told)
        n_answer = min(checked.max_tokens or self.n_ctx, self.n_ctx // ANSWER_SHARE)
        kept = fit_history(told, self.n_ctx - n_answer, lambda m: len(chat_prompt(self._tokenizer, m)))
        tokens = chat_prompt(self._tokenizer, kept)
        return Generation(self._pool.lend, self._tokenizer, self.n_vocab, tokens, checked)

    def tokenize(self, text: str, *, bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            bos: whether to start with BOS; None: as the file says.
            parse_special: whether text that spells a special token becomes that token.

        Example:
            >>> with Coder() as coder:
            ...     coder.detokenize(coder.tokenize("x = 1"))
            'x = 1'
        """
        return self._tokenizer.tokenize(text, bos=bos, parse_special=parse_special)

    def detokenize(self, token_ids: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids. Special tokens add nothing, unless `special` spells them out."""
        return self._tokenizer.detokenize(token_ids, special=special)

    def logits(self, token_ids: Iterable[int]) -> Float32:
        """What the model expects after each token: float32 [n_tokens, n_vocab], not normalized.

        Raises:
            OptionError: no ids, or one outside the vocabulary.
            ContextLengthError: more ids than the context holds.

        Example:
            >>> with Coder() as coder:
            ...     ids = coder.tokenize("def f(x):")
            ...     coder.logits(ids).shape == (len(ids), coder.n_vocab)
            True
        """
        tokens = [operator.index(i) for i in token_ids]
        self._require_open()
        with self._pool.lend(tokens) as session:
            return session.score(tokens)

    def save_session(self, path: str | os.PathLike[str]) -> None:
        """Writes what was computed for the last call, so that `load_session` can spare it another process.

        Raises:
            OptionError: nothing was computed yet.
            OutputError: the file cannot be written.
        """
        self._require_open()
        session = self._pool.newest()
        if session is None:
            raise OptionError("there is no session to save: nothing was computed yet")
        with self._pool.lend(session.tokens) as lent:
            save_session(Path(path), self._engine, lent)

    def load_session(self, path: str | os.PathLike[str]) -> None:
        """Reads what `save_session` wrote; later calls whose prompts begin the same way make use of it.

        Raises:
            FileError: no saved session, a damaged one, or that of another model.
            ContextLengthError: it is longer than the context.
        """
        self._require_open()
        with self._pool.new() as session:
            load_session(Path(path), self._engine, session)

    @property
    def n_ctx(self) -> int:
        """Positions of the context."""
        return self._engine.n_ctx

    @property
    def n_vocab(self) -> int:
        """Rows of the model's output; padding rows, which are never sampled, included."""
        return self._engine.n_vocab

    @property
    def is_instruct(self) -> bool:
        """Whether the model was tuned to answer instructions, rather than to complete text."""
        return self._tokenizer.is_instruct

    @property
    def engine(self) -> Engine:
        """The loaded model, for those who work with token ids and logits."""
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""
        return self._tokenizer

    def close(self) -> None:
        """Stops the threads and frees the KV cache; everything but `close` is an error afterwards.

        A generation that still runs in another thread ends with that error, too.
        """
        self._resources.close()
        self._closed = True

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise OptionError(f"the Coder of {self.path.name} is closed")


def _checked(options: GenerationArguments) -> GenerationOptions:
    unknown = set(options) - {spec.name for spec in fields(GenerationOptions)}
    if unknown:
        raise OptionError(f"unknown option {', '.join(sorted(unknown))}; see localcoder.GenerationOptions")
    return GenerationOptions(**options)


def embedded_model() -> AbstractContextManager[Path]:
    """The model inside the package, as a file for the duration of a `with` block.

    Raises:
        FileError: this installation has none.
    """
    resource = importlib.resources.files("localcoder") / "data" / EMBEDDED_MODEL
    if not resource.is_file():
        raise FileError(EMBEDDED_MODEL, "this installation has no embedded model; name a GGUF file")
    return importlib.resources.as_file(resource)
