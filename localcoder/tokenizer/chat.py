"""Conversations as token ids, in the form that the model was tuned on.

Text of a message never becomes a special token, whatever it spells; those come from the template alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from localcoder.errors import ContextLengthError, OptionError
from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE
from localcoder.tokenizer.jinja import render
from localcoder.tokenizer.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]  # with "role", one of ROLES, and "content"
_PRIVATE = range(0xE000, 0xF900)  # code points that mean nothing


def check_messages(messages: Sequence[Message]) -> None:
    """OptionError unless each message has a role and a text, and the last is the user's."""
    for message in messages:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise OptionError(f"a message is {str(message)[:60]!r}; expected a dictionary of role and content")
        if message["role"] not in ROLES or not isinstance(message["content"], str):
            raise OptionError(
                f"a message has the role {message['role']!r}; expected one of {', '.join(ROLES)}, and a text"
            )
    if not messages or messages[-1]["role"] != "user":
        raise OptionError("the last message must be the user's")


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[Message], template: str | None = None) -> list[int]:
    """Token ids of a conversation, up to where the answer begins.

    Args:
        template: Jinja source; None: the file's.

    Raises:
        TokenizerError: the file's template is broken.
        OptionError: the template refuses these messages, or one of them is none.
    """
    check_messages(messages)
    texts = "".join(message["content"] for message in messages)
    mark = next((chr(c) for c in _PRIVATE if chr(c) not in texts), None)
    if mark is None:
        raise OptionError("the messages use every private character of Unicode; leave one out")
    guarded = [{**message, "content": tokenizer.guard(message["content"], mark)} for message in messages]
    ids = tokenizer.tokenize(_render(tokenizer, guarded, template), bos=False, parse_special=True, dropped=mark)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids


def head_length(tokenizer: Tokenizer, messages: Sequence[Message], ids: Sequence[int]) -> int:
    """How many leading tokens of `ids`, the `chat_prompt` of `messages`, do not depend on what is asked: those of the
    system prompt."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    other = chat_prompt(tokenizer, [*system, {"role": "user", "content": "?"}])
    pairs = enumerate(zip(ids, other))
    return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(other)))


def _render(tokenizer: Tokenizer, messages: Sequence[Message], template: str | None) -> str:
    template = template or tokenizer.chat_template or FAMILY_TEMPLATE
    names = {
        "bos_token": tokenizer.spelling_of(tokenizer.bos_id),
        "eos_token": tokenizer.spelling_of(tokenizer.eos_id),
    }
    if _runs_together(template, names):
        messages = [_with_newline(message) if message["role"] == "system" else message for message in messages]
    return render(template, messages, names)


def _runs_together(template: str, names: Mapping[str, str]) -> bool:
    """Whether a system prompt is followed by the first instruction on the same line, as in the family's templates."""
    if "### Instruction:" not in template:
        return False
    probe = [{"role": "system", "content": "probe"}, {"role": "user", "content": "x"}]
    return "probe###" in render(template, probe, names)


def _with_newline(message: Message) -> Message:
    content = message["content"]
    return message if content.endswith("\n") or not content else {**message, "content": content + "\n"}


def fit_history(
    messages: Sequence[Message], n_positions: int, count: Callable[[Sequence[Message]], int]
) -> list[Message]:
    """The conversation without its oldest turns, so that it takes at most `n_positions`.

    A turn is a user's message with the answers to it; system messages and the last turn stay.

    Raises:
        ContextLengthError: what has to stay takes more.
    """
    kept = list(messages)
    while (n := count(kept)) > n_positions:
        users = [i for i, message in enumerate(kept) if message["role"] == "user"]
        if len(users) < 2:
            raise ContextLengthError(
                f"the last message takes {n} positions of {n_positions}; shorten it or raise n_ctx"
            )
        second = users[1]
        kept = [m for i, m in enumerate(kept) if i >= second or m["role"] == "system"]
    return kept
