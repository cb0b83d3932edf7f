"""What an answer has to be: the arguments `grammar`, `response_format`, and `tools` with a chosen one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localcoder.errors import FileError, OptionError
from localcoder.files.mapped import read_bounded

_MOST_BYTES = 1 << 20


class LlamaGrammar:
    """Texts that a grammar in GBNF or a JSON schema describes. `verbose` changes nothing.

    What is wrong with it is said where it is used.

    Attributes:
        options: of a generation.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """Of GBNF."""
        return cls(grammar=grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """Of a file of GBNF.

        Raises:
            FileError: it cannot be read, or is no UTF-8 text.
        """
        try:
            return cls.from_string(read_bounded(Path(file), _MOST_BYTES, FileError).decode())
        except UnicodeDecodeError as error:
            raise FileError(file, f"not UTF-8 text (byte {error.start})") from None

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """Of a JSON schema, as text."""
        return cls(json_schema=json_schema)


def grammar_options(a: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `Coder` for what the arguments of a call say about the text.

    Raises:
        OptionError: one of them that means nothing here, or several.
    """
    grammar, form, tool = a.get("grammar"), a.get("response_format"), chosen_tool(a)
    if grammar is not None and not isinstance(grammar, LlamaGrammar):
        raise OptionError(f"grammar is {grammar!r:.60}; expected a LlamaGrammar of localcoder.compat.llama_cpp")
    wishes = [] if grammar is None else [grammar.options]
    if form is not None and form != {"type": "text"}:
        if not isinstance(form, Mapping) or form.get("type") != "json_object" or not set(form) <= {"type", "schema"}:
            raise OptionError(
                f"response_format is {form!r:.60}; expected its type 'text', or 'json_object' with a schema or without"
            )
        wishes.append({"json_schema": form.get("schema", {"type": "object"})})
    if tool is not None:
        wishes.append({"json_schema": tool.get("parameters") or {"type": "object"}})
    if len(wishes) > 1:
        raise OptionError("grammar, response_format and tools exclude each other; give one of them")
    return wishes[0] if wishes else {}


def chosen_tool(a: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The function that the model is to call; None where it is to answer.

    Raises:
        OptionError: it is left to the model, which was not trained for that, or there is no such function.
    """
    tools = _named(a, "tools") or _named(a, "functions")
    for name in ("tool_choice", "function_call"):
        choice = a.get(name)
        if choice is None or choice == "none":
            continue
        chosen = choice.get("function", choice) if isinstance(choice, Mapping) else None
        if not isinstance(chosen, Mapping) or chosen.get("name") not in tools:
            expected = f"none, or one of the functions: {', '.join(tools)}" if tools else "none without tools"
            raise OptionError(f"{name} is {choice!r:.60}; expected {expected}")
        return tools[chosen["name"]]
    if tools and a.get("tool_choice") is None and a.get("function_call") is None:
        raise OptionError("tools need a tool_choice: this family was not trained to choose, name the function to call")
    return None


def _named(a: Mapping[str, Any], argument: str) -> dict[str, Mapping[str, Any]]:
    """Functions by name."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in a.get(argument) or ():
        function = tool.get("function") if isinstance(tool, Mapping) and argument == "tools" else tool
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise OptionError(f"{argument} has {tool!r:.60}; expected functions with a name and parameters")
        found[function["name"]] = function
    return found
