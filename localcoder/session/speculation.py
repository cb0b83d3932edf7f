"""Guesses at the tokens that come next, which are then checked in one step: from the text itself where it repeats
itself, otherwise from a smaller model of the same vocabulary.

Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (2023,
https://arxiv.org/abs/2211.17192).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from localcoder.backends.highest import Candidates, Row, Wanted
from localcoder.errors import ContextLengthError
from localcoder.model.engine import Engine
from localcoder.session.constraint import Constraint
from localcoder.session.lookup import Lookup
from localcoder.session.pool import SessionPool
from localcoder.session.sampler import NO_DRAFT, Draft, Guess, Sampler
from localcoder.session.session import Session

_MOST_DRAFTED = 16
_CHECKING = 0.15  # of a step: what each further token in it costs, about, on a CPU
_MEMORY = 0.9  # what a guess counts for once another has been judged
_LONGEST_PAUSE = 64


class Speculation:
    """The guesses of one generation.

    Args:
        lookup: is asked first.
        model: is asked where the lookup has nothing to say.

    Attributes:
        n_drafted, n_accepted: tokens that were guessed, and those of them that were right.
    """

    def __init__(self, lookup: Lookup, model: Drafting | None = None) -> None:
        self._lookup = lookup
        self._model = model
        self._learn: Callable[[int, int], None] = lookup.learn
        self.n_drafted = self.n_accepted = 0

    def add(self, token: int) -> None:
        """Tells a token that was chosen."""
        self._lookup.add(token)

    def draft(self, history: Callable[[], Sequence[int]], n_most: int) -> Draft:
        """At most so many tokens that may follow the history, which is only made where a model looks at it."""
        tokens = self._lookup.draft(n_most)
        self._learn = self._lookup.learn
        if tokens or self._model is None:
            return Draft(tokens)
        self._learn = self._model.pace.learn
        return self._model.draft(history(), n_most)

    def cut(self, start: int, stop: int) -> None:
        """Tells that tokens start .. stop - 1 are no longer in the history that `draft` gets."""
        if self._model is not None:
            self._model.cut(start, stop)

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Tells how many tokens of the last draft were right."""
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
        self._learn(n_drafted, n_accepted)


class Pace:
    """How many tokens are worth drafting.

    With a share a of guesses accepted, n guesses, each at a cost of c steps of the large model, make a generation
    (1 - a^(n + 1)) / ((1 - a) (n c + 1)) times as fast (theorem 3.8, with what checking costs added to c); the share is
    what was seen lately. Where nothing is to be gained, one token is guessed now and then, at growing intervals, to see
    whether that has changed.

    Args:
        cost: of a step of the draft model, in steps of the large one.
    """

    def __init__(self, cost: float) -> None:
        self._cost = cost + _CHECKING
        self._n_judged, self._n_accepted = 5.0, 4.0  # before anything was seen
        self._pause = self._n_waited = 0

    def length(self) -> int:
        """How many tokens to draft now."""
        share = min(self._n_accepted / self._n_judged, 0.999)
        lengths = range(_MOST_DRAFTED + 1)
        best = max(lengths, key=lambda n: (1 - share ** (n + 1)) / ((1 - share) * (n * self._cost + 1)))
        if best:
            self._pause = self._n_waited = 0
            return best
        self._n_waited += 1
        if self._n_waited <= self._pause:
            return 0
        self._n_waited, self._pause = 0, min(max(2 * self._pause, 4), _LONGEST_PAUSE)
        return 1

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Tells how many tokens of the last draft were right; those after the first wrong one were not judged."""
        for is_right in [True] * n_accepted + [False] * (n_drafted > n_accepted):
            self._n_judged = self._n_judged * _MEMORY + 1
            self._n_accepted = self._n_accepted * _MEMORY + is_right


class Drafting:
    """Drafts of a model for one generation.

    Args:
        session: of the draft model.
        sampler: of the generation; the guesses are filtered as its tokens are.
        cost: as for `Pace`.
    """

    def __init__(self, session: Session, sampler: Sampler, cost: float) -> None:
        self._session = session
        self._sampler = sampler
        self.pace = Pace(cost)

    def draft(self, history: Sequence[int], n_most: int) -> Draft:
        """At most so many tokens that may follow `history`; none where it is too long for the draft model."""
        n = min(self.pace.length(), n_most)
        if n < 1:
            return NO_DRAFT
        proposer = _Proposer(self._sampler)
        try:
            tokens = list(self._session.generate(history, proposer, max_tokens=n))
        except ContextLengthError:
            return NO_DRAFT
        return Draft(tokens, proposer.drawn_from)

    def cut(self, start: int, stop: int) -> None:
        """As `Speculation.cut`."""
        self._session.cut(start, stop)


class _Proposer:
    """Takes a sampler's place, and notes what it drew from."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.drawn_from: list[Candidates] = []

    def wanted(self, n_vocab: int) -> Wanted | None:
        return self._sampler.wanted(n_vocab)

    def sample(
        self,
        row: Row,
        history: Sequence[int],
        constraint: Constraint | None = None,
        guess: Guess | None = None,
    ) -> int:
        drawn = self._sampler.guess(row, history)
        self.drawn_from.append(drawn.drawn_from)
        return drawn.token


class DraftModel:
    """A smaller model that guesses for a larger one.

    Args:
        pool: sessions of the smaller model.
        small, large: the two engines; they have one vocabulary.
    """

    def __init__(self, pool: SessionPool, small: Engine, large: Engine) -> None:
        self._pool = pool
        self._cost = _weight_bytes(small) / _weight_bytes(large)

    @contextmanager
    def drafting(self, prompt: Sequence[int], sampler: Sampler, is_cancelled: Callable[[], bool]) -> Iterator[Drafting]:
        """The drafts for one generation, for the duration of a `with` block."""
        with self._pool.lend(prompt) as session, session.cancelled_by(is_cancelled):
            yield Drafting(session, sampler, self._cost)


def _weight_bytes(engine: Engine) -> int:
    """What a step reads, about, and so what it costs."""
    return sum(tensor.nbytes for tensor in engine.file.tensors.values())
