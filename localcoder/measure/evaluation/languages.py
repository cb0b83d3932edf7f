"""How a problem becomes a program, and how that is run, language by language, as in DeepSeek-Coder's evaluation.

Beyond that, a program has passed only if it came to the end of its tests: the last thing it does is to print a word
that is made up for it. Ending early with exit code 0 is a failure.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from localcoder.measure.evaluation.completions import Code, code_of
from localcoder.measure.evaluation.tasks import Task
from localcoder.measure.sandbox.limits import MIB, Command, Limits

_COMPILER = Limits(cpu_s=60, wall_s=180, memory_bytes=4096 * MIB)
_HEAP_MIB = 1024  # of runtimes that manage their memory; well below the limit, so that they say what is wrong

# What the published evaluation puts before every program, so that a missing import is no failure.
_PYTHON_IMPORTS = """\
import math, re, sys, copy, datetime, itertools, collections, heapq, functools, hashlib, string
from typing import *
from collections import *
"""
_NUMPY_IMPORT = "import numpy\nimport numpy as np\n"
_CPP_HEADERS = (
    "stdlib.h",
    "algorithm",
    "math.h",
    "stdio.h",
    "vector",
    "string",
    "climits",
    "cstring",
    "iostream",
    "cassert",
)
_CS_NAMESPACES = ("System", "System.Numerics", "System.Diagnostics", "System.Collections.Generic", "System.Linq",
    "System.Text", "System.Security.Cryptography")  # fmt: skip

# The Java problems take tuples from the library javatuples, by no more than this.
_JAVA_TUPLE = """\
package org.javatuples;

import java.util.Arrays;
import java.util.List;

public final class {name}<{types}> {{
    private final List<Object> values;

    private {name}(Object... values) {{ this.values = Arrays.asList(values); }}

    public static <{types}> {name}<{types}> with({parameters}) {{ return new {name}<>({arguments}); }}

{getters}
    @Override public boolean equals(Object other) {{
        return other instanceof {name} && values.equals((({name}<{wildcards}>) other).values);
    }}

    @Override public int hashCode() {{ return values.hashCode(); }}

    @Override public String toString() {{ return values.toString(); }}
}}
"""
_JAVA_GETTER = """\
    @SuppressWarnings("unchecked")
    public {type} getValue{i}() {{ return ({type}) values.get({i}); }}

    public {name}<{types}> setAt{i}({type} value) {{
        Object[] changed = values.toArray();
        changed[{i}] = value;
        return new {name}<>(changed);
    }}
"""
_JAVA_TUPLES = {"Unit": 1, "Pair": 2, "Triplet": 3, "Quartet": 4}


def _java_tuple(name: str, n: int) -> str:
    letters = "ABCD"[:n]
    types = ", ".join(letters)
    return _JAVA_TUPLE.format(
        name=name,
        types=types,
        wildcards=", ".join("?" * n),
        parameters=", ".join(f"{letter} v{i}" for i, letter in enumerate(letters)),
        arguments=", ".join(f"v{i}" for i in range(n)),
        getters="\n".join(_JAVA_GETTER.format(name=name, types=types, type=t, i=i) for i, t in enumerate(letters)),
    )


@dataclass(frozen=True)
class Program:
    """Files, and the commands that compile (all but the last) and run them."""

    files: Mapping[str, str]
    commands: Sequence[Command]


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
        title: its name for people.
        tools: programs that must be there.
        build: (task, code before the test, last word, limits) -> program.
        wrong: what the output has if a test found a wrong result.
    """

    title: str
    tools: tuple[str, ...]
    build: Callable[[Task, Code, str, Limits], Program]
    wrong: re.Pattern[str]

    def missing_tools(self) -> list[str]:
        """Those of the tools that are not on this machine."""
        return [tool for tool in self.tools if shutil.which(tool) is None]


def program_of(task: Task, completion: str, word: str, limits: Limits) -> Program:
    """The program that tests a completion.

    Args:
        word: what it prints when it has come to the end of its tests; letters and digits.
        limits: of its run; compilers have limits of their own.
    """
    return BY_NAME[task.language].build(task, code_of(task, completion), word, limits)


def _before_end(test: str, n_braces: int, statement: str) -> str:
    """`test` with a statement before the last `n_braces` closing braces."""
    head = test
    for _ in range(n_braces):
        head = head.rstrip().removesuffix("}")
    return f"{head}\n{statement}\n{test[len(head) :]}"


def _closed_once(code: Code, test: str) -> str:
    """`test` without its first brace where the function is closed already."""
    return test.replace("}", "", 1) if code.is_closed else test


def _python(task: Task, code: Code, word: str, limits: Limits) -> Program:
    body = f"{code.text}\n{task.test}\n"
    at_beginning = re.compile(r"^from __future__ import .*$", re.MULTILINE)  # the only place where it is allowed
    future, body = at_beginning.findall(body), at_beginning.sub("", body)
    imports = "".join(line + "\n" for line in future) + _PYTHON_IMPORTS
    if re.search(r"\b(?:np|numpy)\b", body):
        imports += _NUMPY_IMPORT
    text = f"{imports}{body}\n__import__('os').write(1, b'\\n{word}\\n')\n"
    run = Command([sys.executable, "-I", "program.py"], limits, {"PYTHONHASHSEED": "0"})
    return Program({"program.py": text}, [run])


def _cpp(task: Task, code: Code, word: str, limits: Limits) -> Program:
    headers = "".join(f"#include <{name}>\n" for name in _CPP_HEADERS)
    test = _before_end(_closed_once(code, task.test), 1, f'    std::fflush(stdout); std::puts("\\n{word}");')
    text = f"{headers}{code.text}\n{test}"
    libraries = ["-lcrypto", "-lssl"] if "openssl" in text else []
    compiling = Command(["g++", "-std=c++17", "-w", "-o", "program", "program.cpp", *libraries], _COMPILER)
    return Program({"program.cpp": text}, [compiling, Command(["./program"], limits)])


def _java(task: Task, code: Code, word: str, limits: Limits) -> Program:
    test = _before_end(_closed_once(code, task.test), 2, f'    System.out.println("\\n{word}");')
    files = {f"org/javatuples/{name}.java": _java_tuple(name, n) for name, n in _JAVA_TUPLES.items()}
    quick = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xshare:auto", f"-Xmx{_HEAP_MIB}m")
    compiling = ["javac", *(f"-J{option}" for option in quick), "-nowarn", "-encoding", "UTF-8", "Problem.java"]
    running = ["java", "-ea", *quick, "-Xss64m", "-Djava.io.tmpdir=.", "-cp", ".", "Problem"]
    return Program(
        {**files, "Problem.java": f"{code.text}\n{test}"}, [Command(compiling, _COMPILER), Command(running, limits)]
    )


def _cs(task: Task, code: Code, word: str, limits: Limits) -> Program:
    namespaces = "".join(f"using {name};\n" for name in _CS_NAMESPACES)
    test = _before_end(_closed_once(code, task.test), 2, f'    Console.WriteLine("\\n{word}");')
    compiling = ["mcs", "-d:DEBUG", "-nowarn:105", "-r:System.Numerics.dll", "Program.cs"]
    env = {"MONO_TRACE_LISTENER": "Console.Error", "MONO_GC_PARAMS": f"max-heap-size={_HEAP_MIB}m"}
    running = Command(["mono", "Program.exe"], limits, env)
    return Program({"Program.cs": f"{namespaces}{code.text}\n{test}"}, [Command(compiling, _COMPILER), running])


def _node(name: str, limits: Limits) -> Command:
    return Command(["node", f"--max-old-space-size={_HEAP_MIB}", name], limits)


def _js(task: Task, code: Code, word: str, limits: Limits) -> Program:
    text = f"{code.text}\n{task.test}\nrequire('fs').writeSync(1, '\\n{word}\\n');\n"
    return Program({"program.js": text}, [_node("program.js", limits)])


def _ts(task: Task, code: Code, word: str, limits: Limits) -> Program:
    text = f"{code.text}\n{task.test}\nrequire('fs').writeSync(1, '\\n{word}\\n');\n"
    # As loose as the compiler was when the problems were made, and with today's library.
    options = ["--target", "ES2022", "--lib", "ES2022,DOM", "--module", "commonjs", "--strict", "false"]
    compiling = Command(["tsc", *options, "--typeRoots", ".", "program.ts"], _COMPILER)
    return Program({"program.ts": text}, [compiling, _node("program.js", limits)])


def _php(task: Task, code: Code, word: str, limits: Limits) -> Program:
    text = f'{code.text}\n{task.test}\necho "\\n{word}\\n";\n'
    return Program({"program.php": text}, [Command(["php", "-f", "program.php"], limits)])


def _sh(task: Task, code: Code, word: str, limits: Limits) -> Program:
    text = f"{code.text}\n{_closed_once(code, task.test)}\necho\necho {word}\n"
    return Program({"program.sh": text}, [Command(["bash", "program.sh"], limits)])


BY_NAME = {
    "python": Language("Python", (), _python, re.compile(r"^AssertionError\b(?!.*\n[ \t]+File )", re.MULTILINE)),
    "cpp": Language("C++", ("g++",), _cpp, re.compile(r"Assertion [`'(].*failed|Assertion failed")),
    "java": Language("Java", ("javac", "java"), _java, re.compile(r"java\.lang\.AssertionError")),
    "js": Language("JavaScript", ("node",), _js, re.compile(r"^AssertionError\b|\bAssertionError \[", re.MULTILINE)),
    "ts": Language(
        "TypeScript", ("tsc", "node"), _ts, re.compile(r"^AssertionError\b|\bAssertionError \[", re.MULTILINE)
    ),
    "php": Language("PHP", ("php",), _php, re.compile(r"Test failed!")),
    "cs": Language("C#", ("mcs", "mono"), _cs, re.compile(r"DefaultTraceListener\.Fail")),
    # A test that fails says nothing and ends the program, by `set -e`, with the test's exit code.
    "sh": Language("Bash", ("bash",), _sh, re.compile(r"(?!)")),
}
