"""From what a model wrote to the code that is run: how code is found in an answer, and where it ends.

In this order:

1. Of an answer with Markdown code blocks, the first block that defines the function counts, else the first block.
   Where code stands before the first fence (a completion that goes on into an explanation), that code counts.
2. If the code defines the function itself (an answer with the whole function, or one that repeats the prompt), it
   replaces the prompt's last function; imports and helpers of the prompt stay before it. What a model wrote around
   it is kept, but for a `main` of its own, and for what follows the function in an answer without code blocks: in
   Python from where it is not valid (in MBPP, too), in C++ and Bash all of it, elsewhere from where it is prose.
3. Otherwise it continues the prompt and ends before the first stop of the language, as in DeepSeek-Coder's evaluation;
   in C++, Java and C# where its braces end the function, if they do, and nowhere if they only close what they opened.
   A Python body that has lost the indentation of its first line, or of all lines, gets it back.

Nothing else is repaired: code that is cut off or misspelt fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from localcoder.measure.evaluation.tasks import Task

_FENCE = re.compile(r"^([ \t]*)(```|~~~)[^\n`]*\n(.*?)(?:^[ \t]*\2|\Z)", re.MULTILINE | re.DOTALL)
_END = re.compile(r"(?:<\|EOT\|>|<｜end▁of▁sentence｜>)\s*\Z")  # of a text, spelt out
_TOKENS = re.compile(
    r'//[^\n]*|/\*.*?\*/|"""(?:\\.|.)*?"""|@"(?:""|[^"])*"|"(?:\\.|[^"\\\n])*"|'
    r"'(?:\\[^'\n]*|[^'\\\n])'|[{}]",
    re.DOTALL,
)  # comments, texts and characters as a whole, and braces
_CPP_MAIN = r"^[ \t]*(?:int|auto|signed|void)[ \t]+main[ \t]*\("
_CLASS_MAIN = r"^[ \t]*(?:public[ \t]+)?static[ \t]+(?:void|int)[ \t]+[Mm]ain[ \t]*\("
_BEGINNING = re.compile(
    r"[ \t]*(?:[#/@{}]|\*|<\?|(?:using|import|package|class|public|private|internal|static|struct|template|const|let|"
    r"var|function|export|typedef|namespace|type|interface|enum|abstract|final|record|declare|inline)\b)"
)  # of a line that can be the first of a program
_PYTHON_BEGINNING = re.compile(r"(?:(?:from|import|def|class|async)\b|@|#|[A-Za-z_]\w*[ \t]*=)")
_PROSE = re.compile(r"^(?:[A-Z][\w']*[ ,:]|\*\*|- |\d+\. )", re.MULTILINE)  # a line that is no statement
_INDENT = "    "
_MOST_CUTS = 8
_TYPES = r"[\w:<>,&*?\[\] \t]"  # what a return type is made of


@dataclass(frozen=True)
class Code:
    """What a completion comes to.

    Attributes:
        text: the program before the test.
        is_closed: whether the function is complete; else the test closes it, where a language's tests do.
    """

    text: str
    is_closed: bool


def code_of(task: Task, completion: str) -> Code:
    """The program before the test, by the rules above."""
    text = _END.sub("", completion.replace("\r\n", "\n"))
    if task.benchmark == "mbpp":
        text = cut(text.removeprefix("[BEGIN]"), task.stops)
        code, was_block = _from_blocks(text, "def ")
        return Code(code if was_block else _without_surroundings(code.strip()), True)
    code, was_block = _from_blocks(text, task.function or "")
    found = _definition(task, code)
    if found is None:
        return Code(task.prompt + "\n" + _body(task, code), False)
    return Code(_whole(task, code, found, was_block), True)


def cut(text: str, stops: tuple[str, ...]) -> str:
    """`text` up to the first of `stops`."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


def _from_blocks(text: str, wanted: str) -> tuple[str, bool]:
    """The code of an answer, and whether it stood in a code block."""
    blocks = list(_FENCE.finditer(text))
    if not blocks:
        return text, False
    before = text[: blocks[0].start()]
    if before.lstrip("\n").startswith((" ", "\t")):
        return before, False
    # In a list, the block is as indented as its fence.
    bodies = [re.sub(f"^{block[1]}", "", block[3], flags=re.MULTILINE) for block in blocks]
    return next((body for body in bodies if wanted in body), bodies[0]), True


def _definition(task: Task, code: str) -> re.Match[str] | None:
    """Where the code defines the task's function itself, if it does."""
    name = re.escape(task.function or "")
    pattern = {
        "python": rf"^(?:async[ \t]+)?def[ \t]+{name}\b",
        "js": rf"^[ \t]*(?:export[ \t]+)?(?:default[ \t]+)?(?:async[ \t]+)?(?:function[ \t]+{name}\b|"
        rf"(?:const|let|var)[ \t]+{name}\b[^=\n]*=)",
        "php": rf"^[ \t]*function[ \t]+&?{name}[ \t]*\(",
        "sh": rf"^[ \t]*(?:function[ \t]+{name}\b[ \t]*(?:\([ \t]*\))?|{name}[ \t]*\([ \t]*\))\s*\{{",
    }
    pattern["ts"] = pattern["js"]
    others = (
        rf"^(?![ \t]*(?:return|else|new|throw|case)\b){_TYPES}*?[\w>\]*&?][ \t*&]+{name}"
        r"[ \t]*\([^;{}]*\)[^;{}()]*\{"
    )
    found = re.search(pattern.get(task.language, others), code, re.MULTILINE)
    if found is None:
        return None
    before = code[: found.start()]
    if task.language == "python":
        return None if before.lstrip("\n").startswith((" ", "\t")) else found
    # A body that is followed by the function once more has closed a brace that it did not open.
    return None if any(depth < 0 for _, depth in _braces(before)) else found


def _braces(code: str) -> Iterator[tuple[int, int]]:
    """Yields each brace's end and the depth after it; those in texts and comments are none."""
    depth = 0
    for token in _TOKENS.finditer(code):
        if token[0] in "{}":
            depth += 1 if token[0] == "{" else -1
            yield token.end(), depth


def _block_end(code: str) -> int | None:
    """Where the first block that opens in `code` ends."""
    return next((end for end, depth in _braces(code) if depth == 0), None)


# ---------------------------------------------------------------- a body that continues the prompt


def _body(task: Task, code: str) -> str:
    if task.language == "python":
        return cut(_indented(task, code), task.stops)
    if task.language in ("cpp", "java", "cs"):
        braces = list(_braces(code))
        end = next((end - 1 for end, depth in braces if depth < 0), None)
        if end is not None:
            return code[:end]
        if braces and braces[-1][1] == 0:  # a stop would cut a block that ends here, whatever its indentation
            return code + "\n"
    # A stop such as "\n    }\n" also ends a completion that has nothing after it.
    return cut(code + "\n", task.stops)


def _indented(task: Task, code: str) -> str:
    """`code` as it is if it stands inside the function; else indented in the way that makes it valid."""
    lines = code.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None or lines[first][0] in " \t":
        return code
    one = [*lines[:first], _INDENT + lines[first], *lines[first + 1 :]]
    every = [_INDENT + line if line.strip() else line for line in lines]
    candidates = [code, "\n".join(one), "\n".join(every)]
    return next((c for c in candidates if _is_valid(task.prompt + "\n" + cut(c, task.stops))), code)


def _is_valid(code: str) -> bool:
    return _invalid_line(code) is None


def _invalid_line(code: str) -> int | None:
    """The number of the line, from 1, because of which `code` is not Python; None if it is."""
    try:
        compile(code, "completion", "exec", dont_inherit=True)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    except Warning:  # made an error by whoever runs us
        return None
    return None


# ---------------------------------------------------------------- a whole function


def _whole(task: Task, code: str, found: re.Match[str], was_block: bool) -> str:
    if task.language == "python":
        return _whole_python(task, code, found)
    code = _without_prose(code, found.start(), _BEGINNING)
    found = _definition(task, code) or found
    if task.language != "cpp" and not was_block:
        prose = _PROSE.search(code, found.end())
        code = code[: prose.start()] if prose else code
    if task.language in ("js", "ts"):
        return re.sub(r"^export[ \t]+(?:default[ \t]+)?", "", code, flags=re.MULTILINE)
    if task.language == "php":
        return "<?php\n" + re.sub(r"<\?(?:php)?|\?>", "", code)
    if not was_block:  # what follows the function is not asked for, and may be cut off
        end = _block_end(code[found.start() :]) if task.language != "sh" else None
        if task.language == "sh":
            closing = code.find("\n}", found.end())
            end = closing + 2 - found.start() if closing >= 0 else None
        code = code if end is None or _is_in_class(task, code) else code[: found.start() + end]
    header = task.prompt.rstrip().rpartition("\n")[0]
    if task.language == "sh":
        return f"{header}\n{code}\n"
    if task.language == "cpp":
        return f"{header}\n{_without_function(code, _CPP_MAIN)}\n"
    return _in_class(task, code, header)


def _without_prose(code: str, end: int, beginning: re.Pattern[str]) -> str:
    """Drops the lines that cannot begin a program, up to the position `end`."""
    at = 0
    for line in code[:end].splitlines(keepends=True):
        if beginning.match(line):
            break
        at += len(line)
    return code[at:]


def _whole_python(task: Task, code: str, found: re.Match[str]) -> str:
    tail = _without_prose(code, found.start(), _PYTHON_BEGINNING)
    header = task.prompt[: task.prompt.rindex("def " + (task.function or ""))]
    return header + _valid_beginning(tail, found.end() - (len(code) - len(tail)))


def _without_surroundings(code: str) -> str:
    """Of an answer in Python without code blocks, what is code."""
    found = re.search(r"^def[ \t]", code, re.MULTILINE)
    if found is None or _is_valid(code):
        return code
    tail = _without_prose(code, found.start(), _PYTHON_BEGINNING)
    return _valid_beginning(tail, found.end() - (len(code) - len(tail)))


def _valid_beginning(code: str, begin: int) -> str:
    """`code` up to the unindented line after `begin` that makes it invalid; as it is if that does not help."""
    tail = code
    for _ in range(_MOST_CUTS):
        number = _invalid_line(tail)
        if number is None:
            return tail
        end = len("\n".join(tail.split("\n")[:number]))  # splitlines would split at more than compile does
        at = max((line.start() for line in re.finditer(r"^\S", tail[:end], re.MULTILINE)), default=0)
        if at <= begin:
            return code
        tail = tail[:at]
    return code


def _is_in_class(task: Task, code: str) -> bool:
    return (
        task.language in ("java", "cs")
        and re.search(r"^[^\n]*\bclass[ \t]+\w+[^;{}]*\{", code, re.MULTILINE) is not None
    )


def _without_function(code: str, head: str) -> str:
    """`code` without the function whose head matches."""
    found = re.search(head, code, re.MULTILINE)
    if found is None:
        return code
    end = _block_end(code[found.start() :])
    return code[: found.start()] + ("" if end is None else code[found.start() + end :])


def _in_class(task: Task, code: str, header: str) -> str:
    """A method, or a class that holds it, as a part of the prompt's class, which stays open."""
    imports = r"^[ \t]*(?:import|using|package)[ \t][^;(]*;[ \t]*\n?"
    hoisted = [line for line in re.findall(imports, code, re.MULTILINE) if not line.strip().startswith("package")]
    code = re.sub(imports, "", code, flags=re.MULTILINE)
    outside = ""
    method = _definition(task, code)
    for wrapper in re.finditer(r"^[^\n;{}]*\bclass[ \t]+\w+[^;{}]*\{", code, re.MULTILINE):
        length = _block_end(code[wrapper.start() :])
        end = len(code) + 1 if length is None else wrapper.start() + length  # a class may be left open
        if method is not None and wrapper.end() <= method.start() < end:
            outside = code[: wrapper.start()] + code[end:]
            code = code[wrapper.end() : end - 1]
            break
    outside = re.sub(r"\bpublic[ \t]+(?=(?:\w+[ \t]+)*class\b)", "", outside)
    code = _without_function(code, _CLASS_MAIN)
    return f"{''.join(hoisted)}{_with_classes(header, outside)}\n{code}\n"


def _with_classes(header: str, classes: str) -> str:
    """The prompt's header with other classes put before its own."""
    before, opening, rest = header.partition("class Problem {")
    return f"{before}{classes.strip()}\n{opening}{rest}"
