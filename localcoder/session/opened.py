"""A model file, opened: its tokenizer, its engine, and the sessions over it."""

from __future__ import annotations

import contextlib
import importlib.resources
import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from localcoder.backends.select import is_on_cpu, open_backend
from localcoder.errors import BackendError, FileError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import N_UBATCH, Engine, check_same_vocabulary
from localcoder.session.pool import SessionPool
from localcoder.session.saved import load_session, save_session
from localcoder.session.speculation import DraftModel
from localcoder.store.folder import find_model
from localcoder.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("localcoder")

EMBEDDED_MODEL = "python-9m.gguf"


class OpenedModel:
    """What `Coder` is built on; it has the arguments and attributes of `Coder`."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        gpu_layers: int | None = None,
        n_sequences: int = 1,
        n_ubatch: int = N_UBATCH,
        kv_type: str = "f16",
        draft_model: str | os.PathLike[str] | OpenedModel | None = None,
    ) -> None:
        with contextlib.ExitStack() as resources:
            self.path = _found(path) if path is not None else resources.enter_context(embedded_model())
            file = GGUFFile.open(self.path)
            self._tokenizer = Tokenizer.from_gguf(file)

            def open_engine(device: str, gpu_layers: int | None) -> Engine:
                with contextlib.ExitStack() as opened:
                    backend = open_backend(device, threads, gpu_layers)
                    opened.callback(backend.close)
                    engine = Engine(
                        file, backend, n_ctx=n_ctx, n_sequences=n_sequences, n_ubatch=n_ubatch, kv_type=kv_type
                    )
                    opened.callback(engine.close)
                    resources.push(opened.pop_all())
                    return engine

            try:
                self._engine = open_engine(device, gpu_layers)
            except BackendError as refusal:
                if device != "auto" or is_on_cpu(device):
                    raise
                log.warning("%s; computing on the CPU", refusal)
                self._engine = open_engine("cpu", None)
            if draft_model is not None and not isinstance(draft_model, OpenedModel):
                small = OpenedModel(
                    draft_model,
                    n_ctx=self._engine.n_ctx,
                    threads=threads,
                    device=device,
                    n_sequences=n_sequences,
                    kv_type=kv_type,
                )
                draft_model = resources.enter_context(small)
            self._draft = None if draft_model is None else self._drafting_by(draft_model)
            self._resources = resources.pop_all()
        self._closed = False
        self._pool = SessionPool(self._engine)
        self.notes = [*self._tokenizer.notes, *self._engine.notes]
        if self.notes:
            log.warning("%s: %s", self.path.name, "; ".join(self.notes))

    def _drafting_by(self, draft: OpenedModel) -> DraftModel:
        draft._require_open()
        check_same_vocabulary(self._engine, draft.engine)
        return DraftModel(draft.sessions, draft.engine, self._engine)

    def tokenize(self, text: str, *, bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            bos: whether to start with BOS; None: as the file says.
            parse_special: whether text that spells a special token becomes that token.

        Example:
            >>> from localcoder import Coder
            >>> with Coder() as coder:
            ...     coder.detokenize(coder.tokenize("x = 1"))
            'x = 1'
        """
        return self._tokenizer.tokenize(text, bos=bos, parse_special=parse_special)

    def detokenize(self, token_ids: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids. Special tokens add nothing, unless `special` spells them out.

        Example:
            >>> from localcoder import Coder
            >>> with Coder() as coder:
            ...     coder.detokenize(coder.tokenize("x = 1")[:-1])
            'x = '
        """
        return self._tokenizer.detokenize(token_ids, special=special)

    def save_session(self, path: str | os.PathLike[str]) -> None:
        """Writes what was computed for the last call, so that `load_session` can spare it another process.

        Raises:
            OptionError: nothing was computed yet.
            OutputError: the file cannot be written.

        Example:
            >>> import os, tempfile
            >>> from localcoder import Coder
            >>> prompt = "def read(path):\\n    "
            >>> with tempfile.TemporaryDirectory() as folder, Coder() as coder:
            ...     text = coder.complete(prompt, max_tokens=4)
            ...     coder.save_session(os.path.join(folder, "session"))
            ...     with Coder() as later:
            ...         later.load_session(os.path.join(folder, "session"))
            ...         later.generate(prompt, max_tokens=4).timings.n_prefill
            1
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
    def sessions(self) -> SessionPool:
        """Timelines over the loaded model, for the same people."""
        self._require_open()
        return self._pool

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


def _found(path: str | os.PathLike[str]) -> Path:
    return find_model(path) if isinstance(path, str) else Path(path)


def embedded_model() -> AbstractContextManager[Path]:
    """The model inside the package, as a file for the duration of a `with` block.

    Raises:
        FileError: this installation has none.
    """
    resource = importlib.resources.files("localcoder") / "data" / EMBEDDED_MODEL
    if not resource.is_file():
        raise FileError(EMBEDDED_MODEL, "this installation has no embedded model; name a GGUF file")
    return importlib.resources.as_file(resource)
