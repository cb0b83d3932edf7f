"""Samples, what became of them, and the figures that sum it up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from localcoder.errors import printable
from localcoder.measure.evaluation.execution import Outcome, OutcomeName, run_samples
from localcoder.measure.evaluation.scoring import mean_pass_at_k
from localcoder.measure.evaluation.tasks import Sample

KS = (1, 10, 100)
Progress = Callable[[int, float | None], None]  # how many are done, and the share that passes so far


@dataclass
class Results:
    """Samples and their outcomes, in the same order."""

    samples: list[Sample] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def pass_rate(self) -> float | None:
        """The share that passed of those that were run; None if none was."""
        counts = Counter(outcome.name for outcome in self.outcomes)
        n_run = counts.total() - counts["skipped"]
        return counts["passed"] / n_run if n_run else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each completion and what became of it."""
        for sample, outcome in zip(self.samples, self.outcomes):
            about = {"task_id": sample.task.task_id, "completion": sample.completion}
            yield {**about, "outcome": outcome.name, "detail": printable(outcome.detail)}

    def summary(self) -> dict[str, Any]:
        """The figures: pass@k (k = 1 always, None if nothing was run), counts, and each sample's outcome."""
        by_task: dict[str, list[OutcomeName]] = {}
        for sample, outcome in zip(self.samples, self.outcomes):
            by_task.setdefault(sample.task.task_id, []).append(outcome.name)
        counts = Counter(outcome.name for outcome in self.outcomes)
        figures = {f"pass@{k}": mean_pass_at_k(by_task, k) for k in KS}
        return {
            **{name: value for name, value in figures.items() if value is not None or name == "pass@1"},
            "passed": counts["passed"],
            "failed": counts.total() - counts["passed"] - counts["skipped"],
            "skipped": counts["skipped"],
            "tasks": [
                {"task_id": sample.task.task_id, "outcome": outcome.name, "detail": printable(outcome.detail)}
                for sample, outcome in zip(self.samples, self.outcomes)
            ],
        }


def evaluate(samples: Iterator[Sample], *, workers: int, timeout_s: float, progress: Progress) -> Results:
    """Runs samples as they come; the result is in their order.

    Raises:
        SandboxError: there is no safe way to run programs here.
    """
    taken: list[Sample] = []
    found: dict[int, Outcome] = {}
    so_far = Results()

    def noted() -> Iterator[Sample]:
        for sample in samples:
            taken.append(sample)
            yield sample

    def note(number: int, outcome: Outcome) -> None:
        found[number] = outcome
        so_far.outcomes.append(outcome)
        progress(len(found), so_far.pass_rate())

    run_samples(noted(), workers=workers, timeout_s=timeout_s, on_outcome=note)
    return Results(taken, [found[number] for number in range(len(taken))])


def missing_guards(outcomes: Sequence[Outcome]) -> set[str]:
    """What the programs could do here that a sandbox should prevent."""
    harms = {"network": "reach the network", "processes": "signal other processes", "files": "touch other files"}
    ran = [outcome for outcome in outcomes if outcome.name != "skipped"]
    return {harm for guard, harm in harms.items() if any(guard not in outcome.guards for outcome in ran)}
