"""Sessions of one engine, lent one to each caller at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from localcoder.model.engine import Engine
from localcoder.session.session import Session

MAX_IDLE = 4


class SessionPool:
    """Lends each caller the idle session that shares most with its tokens. Safe for several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._idle: list[Session] = []  # least recently used first

    @contextmanager
    def lend(self, tokens: Sequence[int]) -> Iterator[Session]:
        """A session for the duration of a `with` block, kept afterwards for callers with a similar prompt."""
        session = self._take(tokens)
        try:
            yield session
        finally:
            session.forget_moved()
            with self._lock:
                self._idle.append(session)

    def newest(self) -> Session | None:
        """The idle session that was used last."""
        with self._lock:
            return self._idle[-1] if self._idle else None

    @contextmanager
    def new(self) -> Iterator[Session]:
        """An empty session for the duration of a `with` block, kept afterwards unless the block fails."""
        session = Session(self._engine, self._make_room)
        try:
            yield session
        except BaseException:
            session.close()
            raise
        with self._lock:
            self._idle.append(session)

    @contextmanager
    def passing(self) -> Iterator[Session]:
        """An empty session for the duration of a `with` block, of which nothing is kept."""
        session = Session(self._engine, self._make_room)
        try:
            yield session
        finally:
            session.close()

    def _take(self, tokens: Sequence[int]) -> Session:
        with self._lock:
            best = max(self._idle, key=lambda s: s.n_shared(tokens), default=None)
            if best is not None and best.n_shared(tokens) > 1:  # BOS alone is no reason to overwrite the rest
                self._idle.remove(best)
                return best
            while len(self._idle) >= MAX_IDLE:
                self._idle.pop(0).close()
            return Session(self._engine, self._make_room)

    def _make_room(self) -> bool:
        """Gives up the idle session that was used longest ago; False if there is none."""
        with self._lock:
            if not self._idle:
                return False
            self._idle.pop(0).close()
            return True
