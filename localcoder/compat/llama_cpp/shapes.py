"""Results in the shapes of OpenAI's API, as llama-cpp-python returns them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from localcoder.session.generation import Completion
from localcoder.session.sampler import Logprob
from localcoder.tokenizer.tokenizer import Tokenizer

Json = dict[str, Any]


@dataclass
class Envelope:
    """What all parts of one answer have in common."""

    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, text: str, logprobs: Json | None, finish_reason: str | None) -> Json:
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }


def usage(done: Completion) -> Json:
    return {
        "prompt_tokens": done.n_prompt_tokens,
        "completion_tokens": done.n_tokens,
        "total_tokens": done.n_prompt_tokens + done.n_tokens,
    }


class LogprobWriter:
    """Makes `logprobs` of a completion.

    Args:
        offset: characters before the first token.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int) -> None:
        self._tokenizer = tokenizer
        self._before = b""
        self._offset = offset

    def write(self, records: Sequence[Logprob | int]) -> Json:
        """The next tokens; a bare id is one whose probability is not known, as nothing is before it."""
        written: Json = {"tokens": [], "text_offset": [], "token_logprobs": [], "top_logprobs": []}
        for record in records:
            token = record if isinstance(record, int) else record.token
            spelled = self._spelled(token)
            written["tokens"].append(spelled)
            written["text_offset"].append(self._offset + len(self._before.decode("utf-8", "ignore")))
            self._before += self._tokenizer.token_bytes(token)
            if isinstance(record, int):
                written["token_logprobs"].append(None)
                written["top_logprobs"].append(None)
            else:
                written["token_logprobs"].append(record.logprob)
                top = {self._spelled(other): logprob for other, logprob in record.top}
                written["top_logprobs"].append({**top, spelled: record.logprob})
        return written

    def _spelled(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode("utf-8", "ignore")


def chat_completion(completion: Json) -> Json:
    """A completion in the shape of a chat completion."""
    (choice,) = completion["choices"]
    return _chat(completion, {"role": "assistant", "content": choice["text"]}, choice["finish_reason"])


def tool_completion(completion: Json, name: str) -> Json:
    """A completion, the arguments of a function, in the shape of a chat completion that calls it."""
    (choice,) = completion["choices"]
    called = {"name": name, "arguments": choice["text"]}
    call = {"id": _call_id(completion, name), "type": "function", "function": called}
    message = {"role": "assistant", "content": None, "function_call": called, "tool_calls": [call]}
    return _chat(completion, message, _called(choice["finish_reason"]))


def _call_id(completion: Json, name: str) -> str:
    return f"call__0_{name}_{completion['id']}"


def _called(reason: str | None) -> str | None:
    """Why a call ends: it is complete, or was cut."""
    return "tool_calls" if reason == "stop" else reason


def _chat(completion: Json, message: Json, reason: str | None) -> Json:
    (choice,) = completion["choices"]
    return {
        "id": "chat" + completion["id"],
        "object": "chat.completion",
        "created": completion["created"],
        "model": completion["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": _chat_logprobs(choice["logprobs"]),
                "finish_reason": reason,
            }
        ],
        "usage": completion["usage"],
    }


def chat_chunks(chunks: Iterator[Json]) -> Iterator[Json]:
    """The pieces of a completion in the shape of those of a chat completion, the role first."""
    for i, chunk in enumerate(chunks):
        (choice,) = chunk["choices"]
        reason = choice["finish_reason"]
        if i == 0:
            yield _chat_chunk(chunk, {"role": "assistant"}, None, None)
        yield _chat_chunk(chunk, {"content": choice["text"]} if reason is None else {}, choice["logprobs"], reason)


def tool_chunks(chunks: Iterator[Json], name: str) -> Iterator[Json]:
    """The pieces of a completion, the arguments of a function, in the shape of those of a chat that calls it."""
    nothing = {"content": None, "function_call": None, "tool_calls": None}
    for i, chunk in enumerate(chunks):
        (choice,) = chunk["choices"]
        if i == 0:
            yield _chat_chunk(chunk, {"role": "assistant", **nothing}, None, None)
        called = {"name": name, "arguments": choice["text"]}
        call = {"index": 0, "id": _call_id(chunk, name), "type": "function", "function": called}
        delta = {"role": None, "content": None, "function_call": called, "tool_calls": [call]}
        yield _chat_chunk(chunk, delta, choice["logprobs"], None)
        if choice["finish_reason"] is not None:
            yield _chat_chunk(chunk, {"role": None, **nothing}, None, _called(choice["finish_reason"]))


def _chat_chunk(chunk: Json, delta: Json, logprobs: Json | None, reason: str | None) -> Json:
    return {
        "id": "chat" + chunk["id"],
        "model": chunk["model"],
        "created": chunk["created"],
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "logprobs": _chat_logprobs(logprobs), "finish_reason": reason}],
    }


def _chat_logprobs(logprobs: Json | None) -> Json | None:
    if logprobs is None:
        return None
    written = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    content = [
        {**_chat_token(token, logprob), "top_logprobs": [_chat_token(*other) for other in top.items()]}
        for token, logprob, top in written
    ]
    return {"content": content, "refusal": None}


def _chat_token(token: str, logprob: float) -> Json:
    return {"token": token, "bytes": None, "logprob": logprob}
