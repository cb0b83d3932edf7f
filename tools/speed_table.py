"""The table of speeds in the README, drawn from `tools/results/speed-*.json`.

    python tools/speed_table.py

tools/compare_llama_cpp.py draws it anew whenever it has measured something; a test checks that it is up to date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = RESULTS.parents[1] / "README.md"
START, END = "<!-- speed: by tools/speed_table.py -->\n", "<!-- end speed -->\n"


def speed_table(results: Path = RESULTS) -> str:
    """A row for each model, KV type and test; a column for each machine."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("speed-*.json"))]
    rows: dict[tuple[Any, ...], dict[int, str]] = {}
    for column, report in enumerate(reports):
        for r in report["results"]:
            cell = f"{r['ours']:.{0 if r['ours'] >= 100 else 1}f} = **{r['ratio']:.2f}** ×"
            rows.setdefault((*_order(r), _label(r)), {})[column] = cell
    header = ["", *(_machine(report) for report in reports)]
    lines = [header, ["---", *["---:"] * len(reports)]]
    lines += [[key[-1], *(cells.get(i, "") for i in range(len(reports)))] for key, cells in sorted(rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_readme() -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    README.write_text(f"{before}{START}{speed_table()}{END}{rest.split(END)[1]}", encoding="utf-8")


def _machine(report: dict[str, Any]) -> str:
    *_, isa, _threads = report["backend"].split(", ")
    return f"{report['machine']['cpu']}, {isa}, {report['threads']} threads"


def _order(result: dict[str, Any]) -> tuple[Any, ...]:
    """Smaller models first, prefill before decode, single tokens before several, short pasts before long ones."""
    size = re.match(r"[\d.]+", result["model"])
    kind, n, at_once, depth = _test(result)
    return float(size[0]) if size else 0.0, kind != "pp", depth, at_once, n, result["type"], result["kv_type"]


def _label(result: dict[str, Any]) -> str:
    kind, n, at_once, depth = _test(result)
    what = f"prefill {n}" if kind == "pp" else "decode" if at_once == 1 else f"steps of {at_once}"
    if depth:
        what += f" after {depth}"
    cache = "" if result["kv_type"] == "f16" else f", KV {result['kv_type']}"
    return f"{result['model']}, {what}{cache}"


def _test(result: dict[str, Any]) -> tuple[str, int, int, int]:
    """Its kind, tokens, tokens in a step of decoding, and tokens before."""
    kind, n, at_once, depth = re.findall(r"(pp|tg)(\d+)(?:x(\d+))?(?:@(\d+))?", result["test"])[0]
    return kind, int(n), int(at_once or 1), int(depth or 0)


if __name__ == "__main__":
    write_readme()
