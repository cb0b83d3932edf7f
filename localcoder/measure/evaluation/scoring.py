"""From outcomes to figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from localcoder.measure.evaluation.execution import OutcomeName


def pass_at_k(n: int, n_passed: int, k: int) -> float:
    """The chance that of k samples, drawn from n of which `n_passed` pass, one passes: 1 - C(n - c, k) / C(n, k).

    The unbiased estimator of "Evaluating Large Language Models Trained on Code" (Chen et al., 2021).
    """
    return 1.0 - math.comb(n - n_passed, k) / math.comb(n, k)


def mean_pass_at_k(outcomes: Mapping[str, Sequence[OutcomeName]], k: int) -> float | None:
    """The mean of `pass_at_k` over the tasks; None if one has fewer than k samples, or there are none.

    Args:
        outcomes: of each task's samples. Skipped ones do not count.
    """
    counted = [[name for name in names if name != "skipped"] for names in outcomes.values()]
    counted = [names for names in counted if names]
    if not counted or min(map(len, counted)) < k:
        return None
    return math.fsum(pass_at_k(len(names), names.count("passed"), k) for names in counted) / len(counted)
