"""What tools/gpu_check.py plans and writes: checks, and the results of one card on one day."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = ("correctness", "highest", "roofline", "decode", "prefill")

Result = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One line of the plan: `run` yields its results."""

    part: str
    name: str
    run: Callable[[], Iterator[Result]]

    @property
    def key(self) -> str:
        return f"{self.part} {self.name}"


class Report:
    """The results of one card on one day, in files that are complete after every check."""

    def __init__(self, card: str, folder: Path) -> None:
        label = "".join(c if c.isalnum() else "-" for c in card.split(",")[0].lower())
        date = time.strftime("%Y-%m-%d")
        self.path = folder / f"gpu-{label}-{date}.json"
        self.data: dict[str, Any] = {"device": card, "system": platform.platform(), "date": date}
        self.data["results"] = []
        if self.path.is_file():
            self.data = json.loads(self.path.read_text(encoding="utf-8"))
        died_in = self.data.pop("running", None)
        if died_in is not None:
            self.add(*died_in.split(" ", 1), {"error": "the process ended in the middle of it"})

    @property
    def results(self) -> list[Result]:
        return self.data["results"]

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if r.get("ok") is False or "error" in r]

    @property
    def done(self) -> set[str]:
        return {f"{r['part']} {r['name']}" for r in self.results}

    def forget_failed(self) -> None:
        """Forgets all results of the checks that failed, so that they are done anew."""
        failed = {(r["part"], r["name"]) for r in self.failed}
        self.data["results"] = [r for r in self.results if (r["part"], r["name"]) not in failed]
        self.save()

    def add(self, part: str, name: str, result: Result) -> None:
        self.results.append({"part": part, "name": name, **result})
        self.save()

    def starts(self, check: Check) -> None:
        self.data["running"] = check.key
        self.save()

    def ends(self) -> None:
        del self.data["running"]
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".tmp")
        whole.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        whole.replace(self.path)  # whoever is killed now leaves the file as it was
        self.path.with_suffix(".md").write_text(self.tables(), encoding="utf-8")

    def tables(self) -> str:
        """One table a part."""
        text = f"# {self.data['device']}\n\n{self.data['date']}, {self.data['system']}\n"
        for part in PARTS:
            rows = [r for r in self.results if r["part"] == part]
            if rows:
                columns = list(dict.fromkeys(key for row in rows for key in row if key != "part"))
                cells = [[shown(row.get(column)) for column in columns] for row in rows]
                lines = [columns, ["---"] * len(columns), *cells]
                text += f"\n## {part}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return text


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
