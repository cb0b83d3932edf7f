"""Muon (https://kellerjordan.github.io/posts/muon/), which gives every matrix an update of about equal singular values.

torch.optim.Muon computes them in bf16, one matrix after another: on a CPU that does not multiply bf16 more than half
of a training step. This one takes the dtype, and the matrices of one shape at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial whose iteration takes singular values to .7 ... 1.2
_STEPS = 5
_SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        weights: matrices.
        dtype: of the products.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        *,
        dtype: torch.dtype = torch.float32,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            moved = sorted((w for w in group["params"] if w.grad is not None), key=lambda w: w.shape)
            for shape, same in itertools.groupby(moved, key=lambda w: w.shape):
                weights = list(same)
                updates = orthogonal(torch.stack([self._update(w, group["momentum"]) for w in weights]), self._dtype)
                lr = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                for weight, update in zip(weights, updates):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=lr)

    def _update(self, weight: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(mean, momentum)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices [n, rows, columns] -> those of the same singular vectors, with singular values near 1; float32."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_SMALLEST_NORM)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).float()
