"""What was said on a terminal so far, and how the next answer is to be made."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcoder.cli.common import FOR_PYTHON
from localcoder.cli.source import read_source
from localcoder.errors import FileError, OptionError
from localcoder.files.atomic import write_file
from localcoder.files.json_reader import read_json
from localcoder.session.options import GenerationOptions
from localcoder.tokenizer.chat import ROLES

if TYPE_CHECKING:
    from localcoder.coder import Coder
    from localcoder.session.generation import Completion, Generation

_MOST_BYTES = 64 << 20  # of a saved conversation
_NOT_SETTABLE = {"logit_bias", "logprobs", "regex", "json_schema", "grammar"} | FOR_PYTHON
SETTABLE = tuple(spec.name for spec in fields(GenerationOptions) if spec.name not in _NOT_SETTABLE)


class Conversation:
    """Questions and answers; with a model that only completes text, each prompt stands alone.

    Attributes:
        is_chat: whether the model answers in a conversation.
        system: the system prompt; None: the model's own.
        messages: what was said, in turns of a user's message and the answer to it.
        options: of the next answers, as `Coder.start_chat` takes them.
        last: the last answer; None: there is none yet.
    """

    def __init__(self, coder: Coder, *, is_chat: bool, system: str | None, options: dict[str, Any]) -> None:
        self._coder = coder
        self._files: dict[str, str] = {}
        self._running: Generation | None = None
        self.is_chat, self.system, self.options = is_chat, system, dict(options)
        self.messages: list[dict[str, str]] = []
        self.last: Completion | None = None

    def ask(self, text: str) -> Generation:
        """The answer to `text`, which has not begun. Call `settle` when it has ended, however it did.

        Raises:
            ContextLengthError: the message and its files are too long; those have to be attached again.
        """
        files = "".join(f"{path}:\n```\n{content}```\n\n" for path, content in self._files.items())
        self._files.clear()
        question = {"role": "user", "content": files + text}
        if self.is_chat:
            told = [*self.messages, question]
            self._running = self._coder.start_chat(told, system=self.system, **self.options)
        else:
            self._running = self._coder.start(files + text, **self.options)
        self.messages.append(question)
        return self._running

    def settle(self) -> None:
        """Remembers what there is of the answer; a question that got none is forgotten."""
        if self._running is None:
            return
        done, self._running = self._running.completion, None
        if done.n_tokens or done.finish_reason:
            self.last = done
            self.messages.append({"role": "assistant", "content": done.text})
        else:
            self.messages.pop()

    def attach(self, path: str) -> int:
        """Puts a file before the next message; returns its tokens."""
        if not path:
            raise OptionError("a path is expected, as in /file PATH")
        text = read_source(Path(path).expanduser()).text
        self._files[path] = text if text.endswith("\n") else text + "\n"
        return len(self._coder.tokenize(text, bos=False))

    def undo(self) -> str:
        """Forgets the last turn; returns its question."""
        if not self.messages:
            raise OptionError("nothing was said yet")
        self.last = None
        del self.messages[-1]
        return self.messages.pop()["content"]

    def clear(self) -> None:
        """Forgets everything that was said, and the files to be sent."""
        self.messages.clear()
        self._files.clear()
        self.last = None

    def set_option(self, key: str, value: str) -> None:
        """Sets an option of the next answers; an empty value sets it back.

        Raises:
            OptionError: no such option, or a value that it cannot have.
        """
        if key not in SETTABLE:
            raise OptionError(f"unknown option {key!r}; known: {', '.join(SETTABLE)}")
        changed = {name: old for name, old in self.options.items() if name != key}
        if value:
            changed[key] = _value_of(key, value)
        GenerationOptions(**changed)
        self.options = changed

    @property
    def n_positions(self) -> int:
        """How much of the context the last answer and what was before it take."""
        return self.last.n_prompt_tokens + self.last.n_tokens if self.last else 0

    def save(self, path: str) -> None:
        """Writes the conversation to a file."""
        if not path:
            raise OptionError("a path is expected, as in /save PATH")
        told = {"system": self.system, "messages": self.messages}
        write_file(Path(path).expanduser(), json.dumps(told, ensure_ascii=False, indent=1).encode())

    def load(self, path: str) -> None:
        """Takes up the conversation of a file that `save` wrote.

        Raises:
            FileError: it is none.
        """
        if not path:
            raise OptionError("a path is expected, as in /load PATH")
        file = Path(path).expanduser()
        found = read_json(file, _MOST_BYTES, FileError)
        system, messages = found.get("system"), found.get("messages")
        roles = [m.get("role") if isinstance(m, dict) else None for m in messages] if isinstance(messages, list) else []
        _, user, assistant = ROLES
        is_right = isinstance(messages, list) and roles == [user, assistant] * (len(messages) // 2)
        if not is_right or not isinstance(system, (str, type(None))) or not all(map(_is_message, messages or ())):
            raise FileError(file, "is no conversation that /save wrote")
        self.clear()
        self.system, self.messages = system, messages or []


def _is_message(message: dict[str, Any]) -> bool:
    return set(message) == {"role", "content"} and isinstance(message["content"], str)


def _value_of(key: str, text: str) -> Any:
    """What a word means as the value of an option."""
    kind = str(next(spec.type for spec in fields(GenerationOptions) if spec.name == key))
    if kind == "bool":
        if text.lower() not in ("on", "off", "true", "false"):
            raise OptionError(f"{key} is {text!r}; expected on or off")
        return text.lower() in ("on", "true")
    if kind.startswith("str"):
        return text
    if kind.startswith("Sequence"):
        return [text.replace("\\n", "\n")] if key == "stop" else text.replace(",", " ").split()
    try:
        return int(text) if kind.startswith("int") else float(text)
    except ValueError:
        raise OptionError(f"{key} is {text!r}; expected a number") from None
