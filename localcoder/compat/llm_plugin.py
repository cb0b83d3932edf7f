"""Models of localcoder for the command-line tool `llm` (https://llm.datasette.io), which finds this module by its entry
point in the group "llm".

`localcoder` is the demonstration model inside the package, `localcoder/NAME` a model of the model folder. Instruct
models answer; base models go on with the text, and take neither system prompts nor conversations.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llm
from llm.models import EmbeddingModel
from llm.parts import TextPart
from pydantic import Field, create_model

from localcoder.errors import OptionError
from localcoder.session.options import GenerationOptions
from localcoder.store.folder import stored_models

if TYPE_CHECKING:
    from localcoder.async_coder import AsyncCoder
    from localcoder.session.generation import Completion, Generation

PREFIX = "localcoder"


def _make_options() -> Any:
    """Every number of GenerationOptions, and the stop string."""
    numbers: dict[str, Any] = {}
    for spec in fields(GenerationOptions):
        if "range" in spec.metadata:
            kind = int if str(spec.type).startswith("int") else float
            numbers[spec.name] = (kind | None, Field(default=None, description=spec.metadata["range"].help))
    numbers["stop"] = (str | None, Field(default=None, description="End before this text."))
    return create_model("Options", __base__=llm.Options, **numbers)


@functools.lru_cache(maxsize=1)
def _open(path: Path | None) -> AsyncCoder:
    from localcoder.async_coder import AsyncCoder
    from localcoder.coder import Coder

    return AsyncCoder(Coder(path))


class _Served:
    """What the kinds of models have in common."""

    can_stream = True
    Options: Any = _make_options()

    def __init__(self, model_id: str, path: Path | None) -> None:
        self.model_id = model_id
        self._path = path

    def _start(self, prompt: Any) -> Generation:
        """An answer, or a continuation, which has not begun.

        Raises:
            OptionError: a base model is asked for what only an instruct model can do.
        """
        coder = _open(self._path).coder
        options = {name: value for name, value in prompt.options if value is not None}
        messages = [{"role": message.role, "content": _text_of(message)} for message in prompt.messages]
        if coder.is_instruct:
            return coder.start_chat(messages, **options)
        if [message["role"] for message in messages] != ["user"]:
            raise OptionError(
                f"{self.model_id} is a base model: it goes on with a text, without a system prompt or a conversation"
            )
        return coder.start(messages[0]["content"], **options)


def _text_of(message: Any) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _report(response: Any, done: Completion) -> None:
    response.set_usage(input=done.n_prompt_tokens, output=done.n_tokens)
    response.response_json = {"finish_reason": done.finish_reason, "seed": done.seed}


class LocalcoderModel(_Served, llm.Model):
    """A model for `llm.get_model`."""

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """Yields the text, in pieces where `stream` asks for them."""
        generation = self._start(prompt)
        if stream:
            yield from generation
        else:
            yield generation.run().text
        _report(response, generation.completion)


class AsyncLocalcoderModel(_Served, llm.AsyncModel):
    """A model for `llm.get_async_model`."""

    async def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncGenerator[str, None]:
        """As `LocalcoderModel.execute`."""
        generation = self._start(prompt)
        coder = _open(self._path)
        if stream:
            async for piece in coder.pieces(generation):
                yield piece
        else:
            yield (await coder.run(generation)).text
        _report(response, generation.completion)


class LocalcoderEmbedding(EmbeddingModel):
    """A model for `llm embed`: the mean of the last hidden states, of length 1."""

    def __init__(self, model_id: str, path: Path | None) -> None:
        self.model_id = model_id
        self._path = path

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """A vector for each text."""
        return (_open(self._path).coder.embed(str(item)).tolist() for item in items)


def _served() -> Iterator[tuple[str, Path | None]]:
    """Name and file of every model."""
    yield PREFIX, None
    for model in stored_models():
        if model.path.is_file():
            yield f"{PREFIX}/{model.name}", model.path


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Tells `llm` what can write."""
    for name, path in _served():
        register(LocalcoderModel(name, path), AsyncLocalcoderModel(name, path))


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """Tells `llm` what can embed."""
    for name, path in _served():
        register(LocalcoderEmbedding(name, path))
