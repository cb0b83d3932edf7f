"""Right solutions of eleven HumanEval problems in each language but Python, as a model would continue the prompts."""

# ruff: noqa: E501

from __future__ import annotations

import json
from pathlib import Path

from localcoder.measure.evaluation.tasks import Sample, read_tasks

# In the languages of C's family the bodies are much the same: {i} is the integer type, {len} the length of a list.
_C_FAMILY = {
    "HumanEval_53_add": "    return x + y;\n",
    "HumanEval_55_fib": "    {i} a = 0, b = 1;\n    for ({i} k = 0; k < n; k++) {{ {i} c = a + b; a = b; b = c; }}\n    return a;\n",
    "HumanEval_60_sum_to_n": "    return n * (n + 1) / 2;\n",
    "HumanEval_31_is_prime": "    if (n < 2) {{\n        return false;\n    }}\n"
    "    for ({i} d = 2; d * d <= n; d++) {{\n        if (n % d == 0) return false;\n    }}\n    return true;\n",
    "HumanEval_45_triangle_area": "    return a * h / 2.0{f};\n",
    "HumanEval_24_largest_divisor": "    for ({i} d = n - 1; d > 0; d--) {{ if (n % d == 0) return d; }}\n    return 1;\n",
    "HumanEval_97_multiply": "    return {abs}(a % 10) * {abs}(b % 10);\n",
    "HumanEval_35_max_element": "    {i} best = {first};\n    for{each} {{ if (x > best) best = x; }}\n    return best;\n",
    "HumanEval_52_below_threshold": "    for{each} {{ if (x >= t) return false; }}\n    return true;\n",
    "HumanEval_13_greatest_common_divisor": "    while (b != 0) {{ {i} r = a % b; a = b; b = r; }}\n    return a;\n",
    "HumanEval_41_car_race_collision": "    // each car meets every other: {{ n * n }}\n    return n * n;\n",
}
_WORDS = {
    "cpp": {"i": "long", "f": "f", "abs": "labs", "first": "l[0]", "each": " (long x : l)"},
    "java": {"i": "long", "f": "f", "abs": "Math.abs", "first": "l.get(0)", "each": " (long x : l)"},
    "cs": {"i": "long", "f": "f", "abs": "Math.Abs", "first": "l[0]", "each": "each (long x in l)"},
    "js": {"i": "let", "f": "", "abs": "Math.abs", "first": "l[0]", "each": " (const x of l)"},
    "ts": {"i": "let", "f": "", "abs": "Math.abs", "first": "l[0]", "each": " (const x of l)"},
}
_ENDS = {"js": "}\n", "ts": "}\n", "php": "}\n"}  # where the tests do not close the function

_PHP = {
    "HumanEval_53_add": "    return $x + $y;\n",
    "HumanEval_55_fib": "    return $n < 2 ? $n : fib($n - 1) + fib($n - 2);\n",
    "HumanEval_60_sum_to_n": "    return array_sum(range(1, $n));\n",
    "HumanEval_31_is_prime": "    if ($n < 2) return false;\n"
    "    for ($d = 2; $d * $d <= $n; $d++) { if ($n % $d == 0) return false; }\n    return true;\n",
    "HumanEval_45_triangle_area": "    return $a * $h / 2.0;\n",
    "HumanEval_24_largest_divisor": "    for ($d = $n - 1; $n % $d != 0; $d--);\n    return $d;\n",
    "HumanEval_97_multiply": "    return abs($a % 10) * abs($b % 10);\n",
    "HumanEval_35_max_element": "    return max($l);\n",
    "HumanEval_52_below_threshold": "    foreach ($l as $x) { if ($x >= $t) return false; }\n    return true;\n",
    "HumanEval_13_greatest_common_divisor": "    while ($b) { [$a, $b] = [$b, $a % $b]; }\n    return $a;\n",
    "HumanEval_41_car_race_collision": "    return $n ** 2;\n",
}
_SH = {
    "HumanEval_53_add": "    echo $(($1 + $2))\n",
    "HumanEval_55_fib": "    local a=0 b=1 c\n    for ((k = 0; k < $1; k++)); do c=$((a + b)); a=$b; b=$c; done\n    echo $a\n",
    "HumanEval_60_sum_to_n": "    echo $(($1 * ($1 + 1) / 2))\n",
    "HumanEval_31_is_prime": "    if (($1 < 2)); then echo false; return; fi\n"
    "    for ((d = 2; d * d <= $1; d++)); do\n        if (($1 % d == 0)); then echo false; return; fi\n    done\n    echo true\n",
    "HumanEval_45_triangle_area": "    awk -v a=$1 -v h=$2 'BEGIN { printf \"%.1f\", a * h / 2 }'\n",
    "HumanEval_24_largest_divisor": "    local d=$(($1 - 1))\n    while (($1 % d != 0)); do d=$((d - 1)); done\n    echo $d\n",
    "HumanEval_97_multiply": "    local a=${1#-} b=${2#-}\n    echo $(((a % 10) * (b % 10)))\n",
    "HumanEval_35_max_element": "    echo $1 | tr ' ' '\\n' | sort -n | tail -n 1\n",
    "HumanEval_52_below_threshold": "    for x in $1; do\n        if ((x >= $2)); then echo false; return; fi\n    done\n    echo true\n",
    "HumanEval_13_greatest_common_divisor": "    local a=$1 b=$2 r\n    while ((b)); do r=$((a % b)); a=$b; b=$r; done\n    echo $a\n",
    "HumanEval_41_car_race_collision": "    echo $(($1 * $1))\n",
}


def bodies(language: str) -> dict[str, str]:
    """Task id -> body of the function."""
    if language in ("php", "sh"):
        found = _PHP if language == "php" else _SH
    else:
        found = {task_id: body.format(**_WORDS[language]) for task_id, body in _C_FAMILY.items()}
    return {task_id: body + _ENDS.get(language, "") for task_id, body in found.items()}


def samples(folder: Path, language: str) -> list[Sample]:
    """The bodies as completions of the published problems in `folder`."""
    tasks = {task.task_id: task for task in read_tasks(folder / f"humaneval-{language}.jsonl", "humaneval")}
    return [Sample(tasks[task_id], body) for task_id, body in bodies(language).items()]


def write_completions(path: Path, found: list[Sample]) -> Path:
    lines = [json.dumps({"task_id": sample.task.task_id, "completion": sample.completion}) for sample in found]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
