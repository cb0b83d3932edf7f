"""Chat templates rendered as their authors' tools render them, but trusted with nothing.

A template is a program from a stranger's file: it runs in Jinja's sandbox, sees the messages and a few names, and may
not make more text than a context could hold. The settings (trim_blocks, lstrip_blocks, the added names) are those of
transformers' `apply_chat_template`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from localcoder.errors import OptionError, TokenizerError

if TYPE_CHECKING:
    import jinja2

_MOST_ADDED = 1 << 20  # characters that a template may add to the messages
_MOST_REPEATED = 1 << 16


def render(template: str, messages: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> str:
    """The text of a conversation, up to where the assistant's answer begins.

    Args:
        template: Jinja source.
        messages: each with "role" and "content".
        names: more names that the template may use, such as bos_token.

    Raises:
        TokenizerError: the template is broken, or makes too much text.
        OptionError: the template refuses these messages.
    """
    import jinja2

    limit = _MOST_ADDED + 4 * sum(len(message["content"]) for message in messages)
    pieces, n_chars = [], 0
    try:
        compiled = _compile(template)
        for piece in compiled.generate(messages=[*map(dict, messages)], add_generation_prompt=True, **names):
            pieces.append(piece)
            n_chars += len(piece)
            if n_chars > limit:
                raise TokenizerError("the chat template makes more text than any context holds")
    except Refusal as error:
        raise OptionError(f"the chat template refuses these messages: {_line(error)}") from None
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise TokenizerError(f"the chat template fails: {_line(error)}") from None
    except RecursionError:
        raise TokenizerError("the chat template calls itself without end") from None
    return "".join(pieces)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


class Refusal(Exception):
    """What a template raises with `raise_exception`."""


def _refuse(message: object) -> None:
    raise Refusal(message)


def _to_json(value: object, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=options.get("ensure_ascii", False), indent=indent)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """Without the arithmetic by which a short template makes gigabytes."""

        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "*" and any(isinstance(x, (str, bytes, list, tuple)) for x in (left, right)):
                n = right if isinstance(right, int) else left
                if not isinstance(n, int) or n * max(len(x) for x in (left, right) if hasattr(x, "__len__")) > (
                    _MOST_REPEATED
                ):
                    raise TokenizerError("the chat template makes more text than any context holds")
            if operator == "**" or (operator == "%" and isinstance(left, (str, bytes))):
                raise TokenizerError("the chat template computes what no conversation needs")
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
