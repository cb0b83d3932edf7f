"""Functions of the caller that change logits, or end a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import OptionError
from localcoder.quants.spec import Float32
from localcoder.session.session import StepCancelled

Ids = NDArray[np.intc]
LogitsProcessor = Callable[[Ids, Float32], Float32]
StoppingCriteria = Callable[[Ids, Float32], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Called with the tokens so far [n] and the logits after them [n_vocab], gives what the last of them returns."""

    def __call__(self, input_ids: Ids, scores: Float32) -> Float32:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Called with the tokens so far [n] and the logits after them [n_vocab]: whether the text ends here."""

    def __call__(self, input_ids: Ids, logits: Float32) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


class MinTokensLogitsProcessor:
    """Keeps `token_eos` from coming among the first `min_tokens` tokens after the prompt."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: Ids, scores: Float32) -> Float32:
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


class Hooks:
    """The caller's functions for one generation.

    Attributes:
        has_stopped: whether a criterion has ended it.
    """

    def __init__(self, processors: Any = None, criteria: Any = None) -> None:
        self._processors: Sequence[LogitsProcessor] = _functions("logits_processor", processors)
        self._criteria: Sequence[StoppingCriteria] = _functions("stopping_criteria", criteria)
        self.has_stopped = False

    def __bool__(self) -> bool:
        return bool(self._processors or self._criteria)

    def __call__(self, logits: Float32, history: Sequence[int]) -> Float32:
        """The logits [n_vocab] as the processors leave them; -inf: may not come.

        Raises:
            StepCancelled: the text ends here.
            OptionError: a processor returns something else than logits.
        """
        ids = np.array(history, np.intc)
        changed = logits
        for processor in self._processors:
            changed = np.asarray(processor(ids, changed.copy()), np.float32)
        if any(criterion(ids, logits) for criterion in self._criteria):
            self.has_stopped = True
            raise StepCancelled
        if changed.shape != logits.shape or np.isnan(changed).any() or changed.max() == -np.inf:
            raise OptionError(
                "logits_processor must return the row of logits, without NaN, that leaves a token to choose"
            )
        return changed


def _functions(name: str, given: Any) -> Sequence[Any]:
    functions = [] if given is None else list(given) if isinstance(given, Sequence) else [given]
    if not all(callable(function) for function in functions):
        raise OptionError(f"{name} must be a function of token ids and logits, or a list of such")
    return functions
