"""Stage `train`: goes through the rows, and can be stopped and resumed at any step.

Muon moves the matrices inside the layers, AdamW everything else. The learning rates grow, stay, and at the end fall in
a straight line to zero (https://arxiv.org/abs/2404.06395), all of it counted in tokens; so how long to train can be
decided as late as when they begin to fall.
"""

from __future__ import annotations

import io
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from localcoder.errors import FileError, NumericsError, OptionError
from localcoder.files.atomic import write_file

from .export import read_weights
from .model import Llama
from .muon import Muon
from .packing import heldout_file, map_rows, read_about, rows_file
from .settings import Settings
from .work import Work

_LOG_STEPS = 10
_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Plan:
    """How long, where and how to train.

    Attributes:
        tokens: of the whole training, all sittings together; None: as the saved state says, or without end.
        decay: whether the learning rates begin to fall where the saved training is, which so gets its end.
        minutes: of this sitting; None: until the end.
        micro_rows: rows computed at a time; as many as memory allows.
        save_minutes: time between two saves.
        dtype: that matrices are multiplied in.
    """

    device: str
    dtype: torch.dtype
    compiled: bool
    micro_rows: int
    tokens: int | None = None
    decay: bool = False
    minutes: float | None = None
    save_minutes: float = 3.0
    seed: int = 0


@dataclass
class Progress:
    """How far the training is, and, once that is known, how far it goes.

    Attributes:
        pass_tokens: in the first pass of the rows that it began with.
        started_from: the checkpoint whose weights it began with, by name.
        textbooks: for rows that were packed with a share of them: that share, and after how many tokens they came.
        averaged: by `average`: with what, and the share of the trained weights.
        log: a line for every ten steps.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    total_tokens: int | None = None
    pass_tokens: int = 0
    started_from: str = ""
    textbooks: tuple[float, int] | None = None
    averaged: tuple[str, float] | None = None
    log: list[dict[str, float]] = field(default_factory=list)


def best_dtype(device: str) -> torch.dtype:
    """bf16 where the machine multiplies it, else float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    found = torch.cpu.get_capabilities()
    return torch.bfloat16 if found.get("avx512_bf16") or found.get("amx_bf16") else torch.float32


class Trainer:
    """A model in training.

    Args:
        weights: to start from, by name; None: random ones.

    Raises:
        FileError: the stage `pack` has not run, or for another vocabulary or row length.
        OptionError: weights of another shape, or fewer rows than a step takes.
    """

    def __init__(self, work: Work, settings: Settings, plan: Plan, weights: dict[str, Tensor] | None = None) -> None:
        about = read_about(work)
        expected = {"row_tokens": settings.documents.row_tokens, "n_vocab": settings.model.n_vocab}
        found = {key: about[key] for key in expected}
        if found != expected:
            raise FileError(work.rows, f"was made with {found}; the settings have {expected}")
        if settings.training.batch_rows % plan.micro_rows:
            raise OptionError(f"{plan.micro_rows} rows at a time do not divide the {settings.training.batch_rows}")
        self._work, self._settings, self._plan = work, settings, plan
        self._pad_id = about["pad_id"]
        self._textbooks: float | None = about.get("textbooks")
        self._passes = [map_rows(rows_file(work, n), about["row_tokens"]) for n in range(len(about["passes"]))]
        self._heldout = map_rows(heldout_file(work), about["row_tokens"])
        if min(map(len, self._passes)) < settings.training.batch_rows:
            raise OptionError(f"a pass has {min(map(len, self._passes))} rows, less than a step takes")
        self.progress = Progress(total_tokens=plan.tokens, pass_tokens=about["passes"][0]["tokens"])
        self.model = Llama(settings.model)
        self.model.initialize(plan.seed)
        if weights is not None:
            load_weights(self.model, weights)
        self.model.to(plan.device)
        self._optimizers = self._make_optimizers()
        self._loss: Callable[[Tensor], Tensor] = torch.compile(self._mean_loss) if plan.compiled else self._mean_loss
        if torch.device(plan.device).type == "cuda":
            torch.set_float32_matmul_precision("high")

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = self._settings.training
        hidden = self.model.hidden_matrices()
        known = {id(weight) for weight in hidden}
        others = [weight for weight in self.model.parameters() if id(weight) not in known]
        muon = Muon(hidden, rates.muon_lr, rates.weight_decay, dtype=self._plan.dtype)
        adamw = torch.optim.AdamW(others, lr=rates.adamw_lr, betas=_BETAS, weight_decay=0.0)
        return [muon, adamw]

    @property
    def is_done(self) -> bool:
        return self.progress.total_tokens is not None and self.progress.tokens >= self.progress.total_tokens

    def run(self, tell: Callable[[str], None]) -> Literal["done", "time", "interrupted"]:
        """Trains until the end, to the end of the sitting, or until Ctrl-C or SIGTERM; saves on the way and then.

        Raises:
            NumericsError: the loss is not finite.
            OutputError: the state cannot be saved.
        """
        begun = saved = time.monotonic()
        with _interruptible() as interrupted:
            while not (self.is_done or interrupted() or self._is_over(begun)):
                before = time.monotonic()
                loss = self.step()
                self.progress.seconds += time.monotonic() - before
                self._note(loss, tell)
                if time.monotonic() - saved > 60 * self._plan.save_minutes:
                    self.save()
                    saved = time.monotonic()
            stopped = interrupted()
        if self.is_done:
            self.progress.log.append({"step": self.progress.step, "heldout_loss": self.heldout_loss()})
            tell(f"held-out perplexity {math.exp(self.progress.log[-1]['heldout_loss']):.2f}")
        self.save()
        return "done" if self.is_done else "interrupted" if stopped else "time"

    def _is_over(self, begun: float) -> bool:
        return self._plan.minutes is not None and time.monotonic() - begun >= 60 * self._plan.minutes

    def step(self) -> float:
        """One step of all optimizers; returns the mean loss of its rows."""
        training, plan = self._settings.training, self._plan
        rows = self._batch(self.progress.step, training.batch_rows)
        total = torch.zeros((), device=plan.device)
        n_micro = len(rows) // plan.micro_rows
        for micro in torch.split(rows, plan.micro_rows):
            loss = self._loss(micro.to(plan.device, non_blocking=True)) / n_micro
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip)
        rate = self.rate()
        for optimizer, highest in zip(self._optimizers, (training.muon_lr, training.adamw_lr)):
            for group in optimizer.param_groups:
                group["lr"] = highest * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += rows.numel()
        found = float(total)
        if not math.isfinite(found):
            raise NumericsError(f"the loss of step {self.progress.step} is {found}: lower the learning rates")
        return found

    def rate(self) -> float:
        """What share of the highest learning rate the next step has."""
        training, progress = self._settings.training, self.progress
        step_tokens = training.batch_rows * self._settings.documents.row_tokens
        rising = (progress.tokens + step_tokens) / training.warmup_tokens if training.warmup_tokens else 1.0
        if progress.total_tokens is None:
            return min(rising, 1.0)
        falling = (progress.total_tokens - progress.tokens) / (training.decay_share * progress.total_tokens)
        return max(min(rising, 1.0, falling), 0.0)

    def _batch(self, step: int, n_rows: int) -> Tensor:
        """The rows of a step: int64 [n_rows, row_tokens]. Every pass has an order of its own; what is less than a step
        at its end is left out."""
        number, at = 0, step
        while at >= len(self._passes[number % len(self._passes)]) // n_rows:
            at -= len(self._passes[number % len(self._passes)]) // n_rows
            number += 1
        rows = self._passes[number % len(self._passes)]
        order = np.random.default_rng([self._plan.seed, number]).permutation(len(rows))
        return torch.from_numpy(rows[np.sort(order[at * n_rows : (at + 1) * n_rows])].astype(np.int64))

    def _mean_loss(self, rows: Tensor) -> Tensor:
        """Mean loss of what follows each token: rows int64 [n, row_tokens] -> []."""
        kind = torch.device(self._plan.device).type
        is_mixed = self._plan.dtype != torch.float32
        with torch.autocast(kind, self._plan.dtype) if is_mixed else nullcontext():
            logits = self.model(rows[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), ignore_index=self._pad_id)

    @torch.no_grad()
    def heldout_loss(self) -> float:
        """Mean loss on held-out rows, in nats a token."""
        n_rows = len(self._heldout) // self._plan.micro_rows * self._plan.micro_rows
        if not n_rows:
            return math.nan
        rows = torch.from_numpy(self._heldout[:n_rows].astype(np.int64)).to(self._plan.device)
        losses = [float(self._loss(micro)) for micro in torch.split(rows, self._plan.micro_rows)]
        return math.fsum(losses) / len(losses)

    def _note(self, loss: float, tell: Callable[[str], None]) -> None:
        progress = self.progress
        if progress.step % _LOG_STEPS and progress.step != 1:
            return
        line = {"step": progress.step, "seconds": round(progress.seconds, 1), "tokens": progress.tokens, "loss": loss}
        speed = progress.tokens / max(progress.seconds, 1e-9)
        progress.log.append(line)
        tell(f"step {progress.step}  {self.amount}  loss {loss:.4f}  rate {self.rate():.2f}  {speed:,.0f} tokens/s")

    @property
    def amount(self) -> str:
        """How much is done, in words."""
        total = self.progress.total_tokens
        return f"{self.progress.tokens:,} tokens" + (f" of {total:,}" if total else "")

    def save(self) -> None:
        """Writes the state and the log, each as a whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "progress": vars(self.progress),
        }
        _write_state(self._work.state, state)
        write_file(self._work.log, "".join(json.dumps(line) + "\n" for line in self.progress.log).encode())

    def resume(self) -> None:
        """Goes on from the saved state, to the plan's end if that has one, else to the state's.

        Raises:
            FileError: there is none, or it is damaged.
            OptionError: it is of another model, or beyond the end.
        """
        state = read_state(self._work.state)
        load_weights(self.model, state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        progress = self.progress = Progress(**state["progress"])
        if self._textbooks is not None and progress.textbooks is None:
            progress.textbooks = self._textbooks, progress.tokens
        if self._plan.decay:
            progress.total_tokens = math.ceil(progress.tokens / (1 - self._settings.training.decay_share))
        elif self._plan.tokens is not None:
            progress.total_tokens = self._plan.tokens
        if progress.averaged is not None:
            raise OptionError(f"{self._work.state} has averaged weights; train on from one that has not")
        if self.is_done:
            raise OptionError(f"{self._work.state} has {self.amount}; to go on, give more with --tokens")


def read_state(path: Path) -> dict[str, Any]:
    """A saved state, on the CPU; FileError if there is none, or it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileError(path, "is missing: run the stage `train` first") from None
    except Exception as error:  # torch raises many kinds
        raise FileError(path, f"is no saved state: {error}") from None


def _write_state(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())


def average(path: Path, settings: Settings, other: Path, share: float) -> None:
    """Moves the weights of a saved state towards an earlier checkpoint's: what the training forgot comes back, what it
    learned mostly stays (https://arxiv.org/abs/2109.01903). The state then is for export only.

    Args:
        share: of the state's own weights.

    Raises:
        FileError: no state, or no checkpoint.
        OptionError: weights of another shape, or a state that has been averaged.
    """
    state = read_state(path)
    if state["progress"]["averaged"] is not None:
        raise OptionError(f"{path} has averaged weights already")
    earlier = Llama(settings.model)
    load_weights(earlier, read_weights(other))
    mixed = {name: torch.lerp(weight, state["model"][name], share) for name, weight in earlier.state_dict().items()}
    state["model"] = mixed
    state["progress"]["averaged"] = other.resolve().stem, share
    _write_state(path, state)


def load_weights(model: Llama, weights: dict[str, Tensor]) -> None:
    """Copies weights into a model.

    Raises:
        OptionError: their names or shapes are not the model's.
    """
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise OptionError(f"{name} is {found.get(name)} in the checkpoint; the settings give {expected.get(name)}")
    model.load_state_dict(weights)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C and SIGTERM only make the function that it yields return True; a second one stops at once."""
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
