"""An infill: a generation between two texts, ended and tidied by the rules of `assist/hygiene.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from localcoder.assist.context import Context, fit
from localcoder.assist.hygiene import ALL_RULES, NO_RULES, Hygiene, Rules, Scope
from localcoder.errors import ContextLengthError, OptionError
from localcoder.session.constraint import Surroundings
from localcoder.session.generation import Completion, Generation
from localcoder.session.options import ANSWER_SHARE, GenerationOptions
from localcoder.session.session import Session
from localcoder.session.several import Several
from localcoder.session.speculation import DraftModel
from localcoder.tokenizer.infill import N_MARKERS, InfillPrompt, infill_prompt, require_infill
from localcoder.tokenizer.tokenizer import Tokenizer

_LEAST_PROMPT = 16  # tokens


@dataclass(frozen=True)
class InfillRequest:
    """What is asked for.

    Attributes:
        prefix, suffix: text before and after the hole, with "\\n" line ends.
        path: the file's name, which tells what a comment looks like.
        extra_files: other files, text by path, the most important last.
        scope: how much is wanted at most; None: until the model ends its text.
        rules: which rules tidy the result; none where the options have a regular expression, schema or grammar, and
            neither healing nor brackets where they have a syntax.
    """

    prefix: str
    suffix: str = ""
    path: str | None = None
    extra_files: Mapping[str, str] = field(default_factory=dict)
    scope: Scope | None = None
    rules: Rules = ALL_RULES


class Hole:
    """What is between two texts: what the model is asked, and what is made of its answer.

    Attributes:
        context: what the model gets to see.
        prompt: its token ids.

    Raises:
        ModelError: the model cannot infill.
        OptionError: no such scope, or one where a regular expression, schema or grammar says what the text is.
        ContextLengthError: the context has no room for a prompt.
    """

    def __init__(self, request: InfillRequest, tokenizer: Tokenizer, n_ctx: int, options: GenerationOptions) -> None:
        require_infill(tokenizer)
        rules = request.rules
        if options.syntax is not None:
            rules = replace(rules, heal_prefix=False, heal_suffix=False, brackets=False)
        elif options.grammar_option is not None:  # it says what the text is: no rule may change it
            if request.scope is not None:
                raise OptionError(f"scope and {options.grammar_option} exclude each other; give one of them")
            rules = NO_RULES
        self.context = _fit(request, tokenizer, n_ctx, options.max_tokens)
        self.prompt: InfillPrompt = infill_prompt(
            tokenizer,
            self.context.prefix,
            self.context.suffix,
            path=request.path,
            extra_files=self.context.files,
            heal_prefix=rules.heal_prefix,
            heal_suffix=rules.heal_suffix,
        )
        self._around = Surroundings(request.prefix.encode(), request.suffix.encode())
        suffix = request.suffix[len(self.prompt.after) :]
        self._hygiene = Hygiene(request.prefix, suffix, scope=request.scope, path=request.path, rules=rules)

    @property
    def edges(self) -> dict[str, Any]:
        """With what the answer begins and ends, and what is around it, as `Generation` takes it."""
        return {"begun": self.prompt.begun, "after": self.prompt.after.encode(), "around": self._around}

    def is_done(self, raw: str) -> bool:
        """Whether nothing that the model would write after `raw` is wanted."""
        return self._hygiene.is_done(raw)

    def filled(self, raw: str, done: Completion) -> Completion:
        """`done`, with what belongs into the hole of all that the model wrote."""
        text, after = self._hygiene.finish(raw), self.prompt.after
        if after and after in text:
            text = text[: text.rindex(after)]
        return replace(done, text=text, finish_reason="stop" if self.is_done(raw) else done.finish_reason)


class Infill:
    """One infill, ready to run.

    Attributes:
        context: what the model gets to see.
        prompt: its token ids.

    Raises:
        As `Hole`.
    """

    def __init__(
        self,
        request: InfillRequest,
        lend: Callable[[Sequence[int]], AbstractContextManager[Session]],
        tokenizer: Tokenizer,
        n_vocab: int,
        n_ctx: int,
        options: GenerationOptions,
        draft: DraftModel | None = None,
    ) -> None:
        self._hole = Hole(request, tokenizer, n_ctx, options)
        self.context, self.prompt = self._hole.context, self._hole.prompt
        options = replace(options, context_overflow="stop")  # no part of such a prompt could be forgotten
        self._generation = Generation(
            lend, tokenizer, n_vocab, self.prompt.ids, options, draft=draft, **self._hole.edges
        )

    def cancel(self) -> None:
        """Ends `run`, whichever thread it is in, before the next step; what there is of the text is tidied."""
        self._generation.cancel()

    def run(self) -> Completion:
        """The completion, whose text is what belongs into the hole; once only."""
        raw = ""
        pieces = iter(self._generation)
        for piece in pieces:
            raw += piece
            if self._hole.is_done(raw):
                break
        pieces.close()
        return self._hole.filled(raw, self._generation.completion)


class Infills:
    """Several infills of one hole, written at the same time.

    Args:
        n, best_of: as for `Several`.

    Raises:
        As `Hole` and `Several`.
    """

    def __init__(
        self,
        request: InfillRequest,
        lend: Callable[[Sequence[int]], AbstractContextManager[Session]],
        tokenizer: Tokenizer,
        n_vocab: int,
        n_ctx: int,
        options: GenerationOptions,
        n: int,
        best_of: int | None = None,
    ) -> None:
        self._hole = Hole(request, tokenizer, n_ctx, options)
        ids = self._hole.prompt.ids
        options = replace(options, context_overflow="stop")  # as for one
        self._several = Several(lend, tokenizer, n_vocab, ids, options, n, best_of, **self._hole.edges)

    def cancel(self) -> None:
        """As `Infill.cancel`."""
        self._several.cancel()

    def run(self) -> list[Completion]:
        """The completions, whose texts are what belongs into the hole; once only."""
        raw: defaultdict[int, str] = defaultdict(str)
        for number, piece in self._several:
            if self._hole.is_done(raw[number]):
                continue  # a piece that was held back when the text was ended
            raw[number] += piece
            if self._hole.is_done(raw[number]):
                self._several.end(number)
        return [self._hole.filled(raw[number], done) for number, done in self._several.numbered]


def _fit(request: InfillRequest, tokenizer: Tokenizer, n_ctx: int, max_tokens: int | None) -> Context:
    def count(text: str) -> int:
        return len(tokenizer.tokenize(text, bos=False))

    n_answer = min(max_tokens or n_ctx, n_ctx // ANSWER_SHARE)
    n_header = count(f"#{request.path}\n") if request.path and request.extra_files else 0
    budget = n_ctx - n_answer - N_MARKERS - n_header
    if budget < _LEAST_PROMPT:
        raise ContextLengthError(f"a context of {n_ctx} has no room for an infill; raise n_ctx")
    return fit(request.prefix, request.suffix, request.extra_files, budget, count)
