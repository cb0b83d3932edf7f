"""Models of localcoder for LangChain: `LocalcoderLLM` completes text, `ChatLocalcoder` answers in a conversation.

Needs the package `langchain-core` (the extra `langchain`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from localcoder.async_coder import AsyncCoder
from localcoder.coder import Coder
from localcoder.errors import OptionError
from localcoder.session.generation import Completion
from localcoder.session.generation import Generation as Running
from localcoder.store.folder import find_model

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
_ROLES = {"system": "system", "human": "user", "ai": "assistant"}


class _Settings(BaseModel):
    """What both kinds of models take."""

    model_config = _STRICT

    model: str | None = None
    """A GGUF file, or the name of a model on this machine; None: the demonstration model inside the package."""
    coder: Coder | None = None
    """A model that is open already, instead of `model`."""
    coder_options: dict[str, Any] = Field(default_factory=dict)
    """How to open `model`: n_ctx, threads, device and the other arguments of `Coder`."""
    max_tokens: int | None = 256
    temperature: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    """More options of a generation: top_p, min_p, repeat_penalty, … as for `Coder.complete`."""

    _opened: Coder = PrivateAttr()
    _async: AsyncCoder = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Opens the model.

        Raises:
            LocalcoderError: it cannot be used. An OptionError comes as pydantic's ValidationError.
        """
        super().model_post_init(context)
        if self.coder is not None and (self.model is not None or self.coder_options):
            raise OptionError("give either a coder, or a model and coder_options")
        path = find_model(self.model) if self.model is not None else None
        self._opened = self.coder if self.coder is not None else Coder(path, **self.coder_options)
        self._async = AsyncCoder(self._opened)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self._opened.path.name, **self._generation_options(None, {})}

    def _generation_options(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        chosen = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return {**chosen, **self.options, "stop": (self.stop or ()) if stop is None else stop, **given}


def _info(done: Completion) -> dict[str, Any]:
    return {"finish_reason": done.finish_reason, "seed": done.seed}


class LocalcoderLLM(_Settings, BaseLLM):
    """A model that goes on with a text.

    Example:
        >>> from localcoder.compat.langchain import LocalcoderLLM
        >>> llm = LocalcoderLLM(max_tokens=8)
        >>> isinstance(llm.invoke("def add(a, b):", stop=["\\n\\n"]), str)
        True
    """

    model_config = _STRICT  # again, after LangChain's own: what is not known is an error

    @property
    def _llm_type(self) -> str:
        return "localcoder"

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        options = self._generation_options(stop, kwargs)
        return _result([self._opened.generate(prompt, **options) for prompt in prompts])

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        options = self._generation_options(stop, kwargs)
        return _result([await self._async.generate(prompt, **options) for prompt in prompts])

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        generation = self._opened.start(prompt, **self._generation_options(stop, kwargs))
        for piece in generation:
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=_info(generation.completion))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        generation = self._opened.start(prompt, **self._generation_options(stop, kwargs))
        async for piece in self._async.pieces(generation):
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                await run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=_info(generation.completion))

    def get_num_tokens(self, text: str) -> int:
        """How many tokens a text has, without BOS."""
        return len(self._opened.tokenize(text, bos=False))


def _result(found: Sequence[Completion]) -> LLMResult:
    n_prompt, n = (sum(counts) for counts in zip(*((done.n_prompt_tokens, done.n_tokens) for done in found)))
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n, "total_tokens": n_prompt + n}
    generations = [[Generation(text=done.text, generation_info=_info(done))] for done in found]
    return LLMResult(generations=generations, llm_output={"token_usage": usage})


class ChatLocalcoder(_Settings, BaseChatModel):
    """A model that answers in a conversation; it takes an instruct model.

    Example:
        >>> from localcoder.compat.langchain import ChatLocalcoder
        >>> chat = ChatLocalcoder(max_tokens=8)
        >>> answer = chat.invoke([("system", "Be brief."), ("human", "Add two numbers.")])
        >>> answer.usage_metadata["output_tokens"] <= 8
        True
    """

    model_config = _STRICT

    @property
    def _llm_type(self) -> str:
        return "localcoder-chat"

    def _start(self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]) -> Running:
        return self._opened.start_chat([*map(_plain, messages)], **self._generation_options(stop, given))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _chat_result(self._start(messages, stop, kwargs).run())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _chat_result(await self._async.run(self._start(messages, stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        generation = self._start(messages, stop, kwargs)
        for piece in generation:
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield _last_chunk(generation.completion)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        generation = self._start(messages, stop, kwargs)
        async for piece in self._async.pieces(generation):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                await run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield _last_chunk(generation.completion)

    def get_num_tokens(self, text: str) -> int:
        """How many tokens a text has, without BOS."""
        return len(self._opened.tokenize(text, bos=False))


def _plain(message: BaseMessage) -> dict[str, str]:
    if message.type not in _ROLES:
        raise OptionError(f"a message is of type {message.type!r}; expected one of {', '.join(_ROLES)}")
    parts = [message.content] if isinstance(message.content, str) else message.content
    texts = [part if isinstance(part, str) else part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise OptionError("a message has a part that is no text; this model reads text only")
    return {"role": _ROLES[message.type], "content": "".join(map(str, texts))}


def _usage(done: Completion) -> UsageMetadata:
    n, n_prompt = done.n_tokens, done.n_prompt_tokens
    return UsageMetadata(input_tokens=n_prompt, output_tokens=n, total_tokens=n_prompt + n)


def _chat_result(done: Completion) -> ChatResult:
    message = AIMessage(content=done.text, usage_metadata=_usage(done), response_metadata=_info(done))
    return ChatResult(generations=[ChatGeneration(message=message, generation_info=_info(done))])


def _last_chunk(done: Completion) -> ChatGenerationChunk:
    message = AIMessageChunk(content="", usage_metadata=_usage(done), response_metadata=_info(done))
    return ChatGenerationChunk(message=message, generation_info=_info(done))
