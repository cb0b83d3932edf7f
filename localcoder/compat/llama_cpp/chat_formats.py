"""Conversation formats that llama-cpp-python knows by name, as Jinja templates with the text that ends an answer.

Only those that its documentation uses: this family's models bring a template of their own, which is taken where none is
named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from localcoder.errors import OptionError

_SYSTEM = "{% set system = (messages | selectattr('role', 'equalto', 'system') | first | default({})).content or '' %}"

FUNCTION_CALLING = "chatml-function-calling"  # chatml, with the function that is to be called in the system prompt
CHAT_FORMATS = {
    "llama-2": (
        _SYSTEM + "{% if system %}[INST] <<SYS>>\n{{ system }}\n<</SYS>>{% endif %} "
        "{% for m in messages | rejectattr('role', 'equalto', 'system') %}"
        "{% set end = ' ' if loop.index is odd else '</s>' %}"
        "{% if system and loop.first %}{{ m.content + end }}"
        "{% else %}{{ ('<s>[INST]' if m.role == 'user' else '[/INST]') + m.content + ' ' + end }}{% endif %}"
        "{% endfor %}[/INST]",
        (),
    ),
    "chatml": (
        _SYSTEM + "{{ '<|im_start|>system\n' + system + '<|im_end|>\n' }}"
        "{% for m in messages | rejectattr('role', 'equalto', 'system') %}"
        "{{ '<|im_start|>' + m.role + '\n' + (m.content + '<|im_end|>\n' if m.content else '') }}"
        "{% endfor %}{{ '<|im_start|>assistant\n' }}",
        ("<|im_end|>",),
    ),
    FUNCTION_CALLING: (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content + '<|im_end|>\n' if m.content or m.role != 'assistant' else '' }}"
        "{% endfor %}{{ '<|im_start|>assistant\n' }}",
        ("<|im_end|>",),
    ),
}


def with_functions(messages: Sequence[dict[str, str]], function: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """A conversation whose system prompt names the function to be called; None: as it is."""
    if function is None:
        return list(messages)
    parameters = json.dumps(function.get("parameters") or {}, ensure_ascii=False)
    described = f"Call the function {function['name']}. Its arguments are JSON of this schema: {parameters}"
    system = [message["content"] for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join([*system, described])}, *others]


def template_of(chat_format: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The template of a format, and what ends its answers; None for the model's own.

    Raises:
        OptionError: a format that is not known here.
    """
    if chat_format is None:
        return None, ()
    if chat_format not in CHAT_FORMATS:
        known = ", ".join(CHAT_FORMATS)
        raise OptionError(f"chat_format is {chat_format!r}; known are {known}, and None for the model's own")
    return CHAT_FORMATS[chat_format]


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages whose contents are strings: parts of text are put together.

    Raises:
        OptionError: a part that is no text.
    """
    return [{**message, "content": _plain(message.get("content"))} for message in messages]


def _plain(content: object) -> str:
    if not isinstance(content, list):
        return "" if content is None else str(content)
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise OptionError(f"a message has {str(part)[:60]!r}; this model reads text only")
    return "".join(part["text"] for part in content)
