"""Stage `report`: measures the exported model with localcoder's own commands, and writes the model card."""

from __future__ import annotations

import ast
import json
import logging
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from localcoder.errors import OptionError
from localcoder.files.atomic import write_file
from localcoder.session.opened import EMBEDDED_MODEL

from .card import make_card
from .cleaning import clean
from .instructions import make_pairs
from .settings import Settings
from .training import read_state
from .work import Work, json_bytes, read_json, require

DATA = Path(__file__).resolve().parents[2] / "localcoder" / "data"
ORIGIN = Path(__file__).with_name("shipped.json")  # of the model in the package
_BLOCK = re.compile(r"```python\n(.*?)(```|\Z)", re.S)
_ANSWER_TOKENS = 200
_N_CTX = 512  # of perplexity's chunks


def count_weights(weights: dict[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def gguf_file(work: Work, settings: Settings, weights: dict[str, Tensor]) -> Path:
    """Where the model is written: named, as its family, after what it knows and its size."""
    return work.folder / f"python-{round(count_weights(weights) / 1e6)}m.gguf"


def run_localcoder(*arguments: str) -> str:
    """Runs a command of localcoder; returns its stdout. Paths must be absolute.

    Raises:
        OptionError: it fails; what it says is on stderr.
    """
    command = [sys.executable, "-m", "localcoder", *arguments]
    # From here: in the project's folder -m would take the sources, which lack the C core.
    done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise OptionError(f"localcoder {arguments[0]} failed with exit code {done.returncode}; see above")
    return done.stdout


def trained_model(work: Work, settings: Settings, profile: str) -> tuple[Path, dict[str, Any]]:
    """The exported model, and where it comes from.

    Raises:
        FileError: an earlier stage has not run.
    """
    state = read_state(work.state)
    progress = state["progress"]
    origin = {
        "profile": profile,
        "n_weights": count_weights(state["model"]),
        "trained_tokens": progress["tokens"],
        "trained_seconds": round(progress["seconds"]),
        "started_from": progress["started_from"],
        "textbooks": progress["textbooks"],
        "averaged": progress["averaged"],
        "corpus_tokens": progress["pass_tokens"],
        "projects": read_json(work.data, "data"),
    }
    return require(gguf_file(work, settings, state["model"]), "export"), origin


def shipped_model() -> tuple[Path, dict[str, Any]]:
    """The model in the package, and where it comes from."""
    return DATA / EMBEDDED_MODEL, json.loads(ORIGIN.read_text(encoding="utf-8"))


def shipped_card() -> str:
    """The card of the model in the package."""
    return (DATA / "MODEL_CARD.md").read_text(encoding="utf-8")


def make_report(
    work: Work,
    settings: Settings,
    model: Path,
    origin: dict[str, Any],
    humaneval: Path | None,
    *,
    n_holes: int,
    n_asked: int,
) -> None:
    """Measures everything that the card says, and writes figures and card.

    Args:
        origin: as `trained_model` gives it.
        humaneval: HumanEval's problems; None leaves that figure out.

    Raises:
        FileError: an earlier stage has not run.
        OptionError: a measurement fails.
    """
    figures: dict[str, Any] = {
        "file": model.name,
        "file_bytes": model.stat().st_size,
        "origin": origin,
        "perplexity": measure_perplexity(model, work.heldout_text),
        "fim": measure_fim(model, work.heldout, n_holes),
        "chat": measure_chat(model, work.heldout, n_asked),
    }
    if humaneval is not None:
        figures["humaneval"] = measure_humaneval(model, humaneval, work.folder / "humaneval.jsonl")
    write_file(work.figures, json_bytes(figures))
    write_file(work.card, make_card(figures, settings).encode())


def measure_perplexity(model: Path, text: Path) -> dict[str, Any]:
    """`localcoder perplexity` on the held-out text."""
    found = json.loads(run_localcoder("perplexity", str(model), "--file", str(text), "--n-ctx", str(_N_CTX), "--json"))
    return {key: found[key] for key in ("perplexity", "standard_error", "n_tokens", "n_ctx")}


def measure_fim(model: Path, folder: Path, n_holes: int) -> list[dict[str, Any]]:
    """`localcoder eval fim` on the held-out sources."""
    options = ["--data", str(folder), "-m", str(model), "--limit", str(n_holes), "--json"]
    return json.loads(run_localcoder("eval", "fim", *options))["holes"]


def measure_humaneval(model: Path, problems: Path, output: Path) -> dict[str, Any]:
    """`localcoder eval humaneval`: pass@1, and how many of the completed programs parse."""
    output.unlink(missing_ok=True)
    options = ["--data", str(problems), "-m", str(model), "--output", str(output), "--json"]
    found = json.loads(run_localcoder("eval", "humaneval", *options))
    prompts = {row["task_id"]: row["prompt"] for row in map(json.loads, problems.read_text("utf-8").splitlines())}
    written = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    n_parsed = sum(parses(prompts[row["task_id"]].strip() + row["completion"]) for row in written)
    return {"pass@1": found["pass@1"], "n_problems": len(written), "parses": n_parsed / len(written)}


def measure_chat(model: Path, folder: Path, n_asked: int) -> dict[str, Any]:
    """Asks for functions of the held-out sources: how many answers hold a code block, and in how many it parses."""
    from localcoder.coder import Coder

    chance = random.Random(0)
    texts = [clean(path.read_bytes()) for path in sorted(folder.rglob("*.py"))]
    pairs = [pair for text in texts if text for pair in make_pairs(text, chance)]
    chance.shuffle(pairs)
    asked = pairs[:n_asked]
    n_blocks = n_parsed = 0
    logging.getLogger("localcoder").setLevel(logging.ERROR)  # no note for each question that a base model was asked
    with Coder(model) as coder:
        for pair in asked:
            answer = coder.chat(pair.instruction, max_tokens=_ANSWER_TOKENS)
            block = _BLOCK.search(answer)
            n_blocks += block is not None
            n_parsed += block is not None and parses(block[1])
    return {
        "n_asked": len(asked),
        "code_blocks": n_blocks / max(len(asked), 1),
        "parses": n_parsed / max(len(asked), 1),
    }


def parses(text: str) -> bool:
    """Whether a text is Python that says something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bool(ast.parse(text).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
