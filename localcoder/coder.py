"""`Coder`: a model file, opened, as a script uses it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, overload

from localcoder.assist.hygiene import ALL_RULES, Rules, Scope
from localcoder.errors import OptionError
from localcoder.session.constraint import Surroundings
from localcoder.session.generation import Completion, Generation
from localcoder.session.infill import Infill, InfillRequest, Infills
from localcoder.session.opened import embedded_model
from localcoder.session.options import ANSWER_SHARE, GenerationArguments, GenerationOptions
from localcoder.session.readings import Readings
from localcoder.session.sampler import Hook
from localcoder.session.several import Several
from localcoder.tokenizer.chat import Message, chat_prompt, check_messages, fit_history, head_length

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Coder", "embedded_model"]

log = logging.getLogger("localcoder")
INSTRUCT_NOTE = (
    "this model was tuned to answer instructions, which unlearns infilling: a base model fits better into a hole"
)
BASE_NOTE = "this model was not tuned to answer instructions: it may go on with the question instead"


class Coder(Readings):
    """A model, ready to write code.

    Safe for several threads: every call works on a timeline of its own, and their steps take turns. What a call
    computed is kept for later calls whose prompts begin the same way. `AsyncCoder` is the same for asyncio.

    Args:
        path: a GGUF file, or (as a string) the name of a model that `localcoder list` shows; default: the small
            demonstration model inside the package.
        n_ctx: positions of the context; default: what the model was trained for.
        threads: default: the cores this process may use.
        device: "auto", or a device that `localcoder devices` lists: "cpu", "cuda" (all cards) or "cuda:N" (that one).
        gpu_layers: how many of the model's layers cards compute, counted from the last; None: as many as fit. The CPU
            computes the others.
        n_sequences: how many full contexts the KV cache holds, for that many long texts at the same time.
        n_ubatch: most tokens computed in one step.
        kv_type: format of the KV cache: "f16", or "q8_0" or "q4_0", which take a half or a quarter of its memory.
        draft_model: a smaller model of the same vocabulary, by its file or name or as a Coder (which stays open), that
            guesses tokens for this one to check, several in one step. Greedy text stays the same, and what is drawn at
            random is equally distributed.

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

    def complete(self, prompt: str | Sequence[int], **options: Unpack[GenerationArguments]) -> str:
        """The text that the model writes after `prompt` (which is not repeated).

        Args:
            prompt: text; BOS is put before it as the file says. What spells a special token stays text. Or token ids,
                taken as they are.
            options: max_tokens=256, temperature=0.0, top_k=40, top_p=0.95, min_p=0.0, repeat_penalty=1.0,
                repeat_last_n=64, seed=None, stop=(), on_token=None and others; `GenerationOptions` says what each does
                and may be.

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

    def stream(self, prompt: str | Sequence[int], **options: Unpack[GenerationArguments]) -> Iterator[str]:
        """As `complete`, but yields the text piece by piece as it is written.

        Leaving the loop early ends the generation. A wrong argument raises here, not at the first piece.

        Example:
            >>> with Coder() as coder:
            ...     for piece in coder.stream("for i in ", max_tokens=8):
            ...         print(piece, end="", flush=True)  # doctest: +SKIP
        """
        return iter(self.start(prompt, **options))

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerationArguments]) -> Completion:
        """As `complete`, with the finish reason, token counts and timings.

        Example:
            >>> with Coder() as coder:
            ...     coder.generate("x = ", max_tokens=2).finish_reason
            'length'
        """
        return self.start(prompt, **options).run()

    def start(
        self, prompt: str | Sequence[int], *, hook: Hook | None = None, **options: Unpack[GenerationArguments]
    ) -> Generation:
        """A generation that has not begun: iterate over it for the text, then see its `completion`.

        Its `cancel` ends it from any thread.

        Args:
            hook: as `Generation` has it.

        Example:
            >>> with Coder() as coder:
            ...     generation = coder.start("import ", max_tokens=8)
            ...     for piece in generation:
            ...         generation.cancel()
            >>> generation.completion.n_tokens < 8
            True
        """
        checked = _checked(options)
        self._require_open()
        tokens = self._tokenizer.tokenize(prompt) if isinstance(prompt, str) else self._ids(prompt)
        return Generation(self._pool.lend, self._tokenizer, self.n_vocab, tokens, checked, draft=self._draft, hook=hook)

    @overload
    def infill(
        self,
        prefix: str,
        suffix: str = "",
        *,
        path: str | None = None,
        extra_files: Mapping[str, str] | None = None,
        scope: Scope | None = None,
        rules: Rules = ALL_RULES,
        n: None = None,
        best_of: None = None,
        **options: Unpack[GenerationArguments],
    ) -> str: ...

    @overload
    def infill(
        self,
        prefix: str,
        suffix: str = "",
        *,
        path: str | None = None,
        extra_files: Mapping[str, str] | None = None,
        scope: Scope | None = None,
        rules: Rules = ALL_RULES,
        n: int,
        best_of: int | None = None,
        **options: Unpack[GenerationArguments],
    ) -> list[str]: ...

    def infill(
        self,
        prefix: str,
        suffix: str = "",
        *,
        path: str | None = None,
        extra_files: Mapping[str, str] | None = None,
        scope: Scope | None = None,
        rules: Rules = ALL_RULES,
        n: int | None = None,
        best_of: int | None = None,
        **options: Unpack[GenerationArguments],
    ) -> str | list[str]:
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
            n, best_of: as for `choices`; where n is given, the result is a list of texts.
            options: as for `complete`.

        Raises:
            ModelError: the model was not trained to infill.
            OptionError: an option out of its range, or unknown; with n or best_of, as for `choices`.
            ContextLengthError: max_tokens leaves no room for a prompt.

        Example:
            >>> with Coder() as coder:
            ...     middle = coder.infill("def area(r):\\n    return ", "\\n", scope="line", max_tokens=12)
            >>> "\\n" in middle
            False
        """
        request = InfillRequest(prefix, suffix, path, extra_files or {}, scope, rules)
        if n is not None:
            return [done.text for done in self.start_infills(request, n=n, best_of=best_of, **options).run()]
        if best_of is not None:
            raise OptionError("best_of needs n: how many of the best are wanted")
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
        checked = self._checked_for_infill(options)
        return Infill(request, self._pool.lend, self._tokenizer, self.n_vocab, self.n_ctx, checked, self._draft)

    def start_infills(
        self,
        request: InfillRequest,
        *,
        n: int = 1,
        best_of: int | None = None,
        **options: Unpack[GenerationArguments],
    ) -> Infills:
        """Several infills of one hole, not begun: `run` them for the completions.

        Args:
            n, best_of: as for `choices`.

        Example:
            >>> from localcoder import InfillRequest
            >>> with Coder() as coder:
            ...     request = InfillRequest("import os\\n", "\\nprint(path)\\n")
            ...     found = coder.start_infills(request, n=2, temperature=0.8, max_tokens=4).run()
            >>> len(found)
            2
        """
        checked = self._checked_for_infill(options)
        return Infills(request, self._pool.lend, self._tokenizer, self.n_vocab, self.n_ctx, checked, n, best_of)

    def _checked_for_infill(self, options: GenerationArguments) -> GenerationOptions:
        checked = _checked(options)
        self._require_open()
        if self.is_instruct:
            log.warning("%s: %s", self.path.name, INSTRUCT_NOTE)
        return checked

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
        return self.start_chat(messages, system=system, **options).run().text

    def start_chat(
        self, messages: str | Sequence[Message], *, system: str | None = None, **options: Unpack[GenerationArguments]
    ) -> Generation:
        """An answer that has not begun: iterate over it for the text, then see its `completion`.

        Example:
            >>> with Coder() as coder:
            ...     answer = coder.start_chat("Why is the sky blue?", system="Be brief.", max_tokens=4)
            ...     for piece in answer:
            ...         print(piece, end="", flush=True)  # doctest: +SKIP
        """
        checked = _checked(options)
        self._require_open()
        told, tokens = self._conversation(messages, system, checked)
        n_head = head_length(self._tokenizer, told, tokens) if checked.context_overflow == "shift" else 0
        return Generation(
            self._pool.lend,
            self._tokenizer,
            self.n_vocab,
            tokens,
            checked,
            draft=self._draft,
            n_head=n_head,
            around=Surroundings(),
        )

    def choices(
        self,
        prompt: str | Sequence[Message],
        *,
        n: int = 1,
        best_of: int | None = None,
        **options: Unpack[GenerationArguments],
    ) -> list[Completion]:
        """Several completions of a prompt, or answers in a conversation, computed at the same time.

        The prompt costs once, and a step for all of them hardly more than for one, as both read the same weights. They
        share the KV cache; `n_sequences` makes it larger.

        Args:
            prompt: text as for `complete`, or messages as for `chat`.
            n: how many; more than one need a temperature.
            best_of: how many to write, of which the `n` with the highest mean log-probability come back, best first.
            options: as for `complete`, without on_token. With best_of, the completions have log-probabilities.

        Raises:
            OptionError: an option out of its range, unknown, or not for several texts.
            ContextLengthError: the prompt is longer than the context, or the cache has no room for all texts.

        Example:
            >>> with Coder() as coder:
            ...     found = coder.choices("def add(a, b):", n=2, best_of=4, temperature=0.8, seed=1, max_tokens=8)
            >>> len(found), found[0].mean_logprob >= found[1].mean_logprob
            (2, True)
        """
        return self.start_choices(prompt, n=n, best_of=best_of, **options).run()

    def start_choices(
        self,
        prompt: str | Sequence[Message],
        *,
        n: int = 1,
        best_of: int | None = None,
        **options: Unpack[GenerationArguments],
    ) -> Several:
        """As `choices`, not begun: iterate over it for pairs (number, piece of text), then see its `completions`.

        Example:
            >>> with Coder() as coder:
            ...     both = coder.start_choices("x = ", n=2, temperature=1.0, max_tokens=4)
            ...     numbers = {number for number, piece in both}
            >>> numbers <= {0, 1}
            True
        """
        checked = _checked(options)
        self._require_open()
        if isinstance(prompt, str):
            tokens, around = self._tokenizer.tokenize(prompt), None
        else:
            (_, tokens), around = self._conversation(prompt, None, checked), Surroundings()
        return Several(self._pool.lend, self._tokenizer, self.n_vocab, tokens, checked, n, best_of, around=around)

    def _conversation(
        self, messages: str | Sequence[Message], system: str | None, options: GenerationOptions
    ) -> tuple[list[Message], list[int]]:
        """As much of a conversation as fits, and its token ids, up to where the answer begins."""
        told = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        if system is not None:
            told.insert(0, {"role": "system", "content": system})
        if not self.is_instruct:
            log.warning("%s: %s", self.path.name, BASE_NOTE)
        check_messages(told)
        n_answer = min(options.max_tokens or self.n_ctx, self.n_ctx // ANSWER_SHARE)
        kept = fit_history(told, self.n_ctx - n_answer, lambda m: len(chat_prompt(self._tokenizer, m)))
        return kept, chat_prompt(self._tokenizer, kept)


def _checked(options: GenerationArguments) -> GenerationOptions:
    unknown = set(options) - {spec.name for spec in fields(GenerationOptions)}
    if unknown:
        raise OptionError(f"unknown option {', '.join(sorted(unknown))}; see localcoder.GenerationOptions")
    return GenerationOptions(**options)
