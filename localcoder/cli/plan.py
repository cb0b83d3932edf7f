"""`localcoder plan`: how much memory a model will take, and what to change where that is too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from localcoder.cli.common import draft_model_option, echo_json, json_option, kv_type_option, threads_option
from localcoder.convert.config import ModelConfig, read_config
from localcoder.convert.family import FAMILY
from localcoder.convert.recipes import ALL, recipe_by_name
from localcoder.errors import CheckpointError, OptionError, printable
from localcoder.files.json_reader import read_json
from localcoder.measure.plan import (
    Forecast,
    PlannedModel,
    advice,
    config_of,
    forecast,
    measure_runtime,
    model_of_file,
    model_of_recipe,
    parse_size,
    shown,
)
from localcoder.store.folder import find_stored

DEFAULT_CTX = 4096


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--type", "type_name", metavar="TYPE", help="The type to convert to.  [default: a file as it is, else all]"
)
@click.option(
    "--n-ctx", type=int, help=f"Positions of the context.  [default: {DEFAULT_CTX}, or what it was trained for]"
)
@kv_type_option
@draft_model_option
@click.option("--ram", metavar="SIZE", help="Memory that it may take, such as 16GiB, 8GB or 8G.")
@click.option("--vram", metavar="SIZE", help="Memory of a GPU that it may take.")
@threads_option
@json_option
def plan(
    model: str,
    type_name: str | None,
    n_ctx: int | None,
    kv_type: str,
    draft_model: Path | None,
    ram: str | None,
    vram: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Forecast the memory that a model takes when it runs.

    MODEL is a GGUF file or a model's name, the folder of a checkpoint, or a member of the family: 1.3b, 5.7b-mqa, 6.7b,
    33b, 7b-v1.5. The forecast is the peak of the resident memory with a full context, that of a draft model included.
    """
    budgets = {"ram": parse_size(ram) if ram else None, "vram": parse_size(vram) if vram else None}
    models, config = _models(model, type_name)
    n_ctx = min(DEFAULT_CTX, config.n_ctx_train) if n_ctx is None else n_ctx
    runtime = measure_runtime(threads)
    draft = None
    if draft_model:
        draft = forecast(model_of_file(draft_model), n_ctx=n_ctx, kv_type=kv_type, runtime=0)
    fits = _fits(budgets, draft)
    plans = []
    for planned_type, planned in models:
        there = forecast(planned, n_ctx=n_ctx, kv_type=kv_type, runtime=runtime)
        plans.append(
            {
                "type": planned_type,
                **{key: value for key, value in asdict(there).items() if key not in ("n_ctx", "kv_type")},
                "draft_model": draft.total if draft else 0,
                "total": there.total + (draft.total if draft else 0),
                "on_device": there.on_device + (draft.on_device if draft else 0),
                "fits": fits(there) if ram or vram else None,
                "advice": [] if fits(there) or len(models) > 1 else list(advice(planned, config, there, fits)),
            }
        )
    shared = {"model": model, "n_ctx": n_ctx, "kv_type": kv_type, "n_ctx_train": config.n_ctx_train, **budgets}
    if as_json:
        echo_json({**shared, **plans[0]} if len(plans) == 1 else {**shared, "plans": plans})
    else:
        for line in _one(shared, plans[0]) if len(plans) == 1 else _table(shared, plans):
            click.echo(line)


def _fits(budgets: dict[str, int | None], draft: Forecast | None) -> Callable[[Forecast], bool]:
    """Whether a model fits beside the draft model."""
    ram, vram = budgets["ram"], budgets["vram"]
    total, on_device = (draft.total, draft.on_device) if draft else (0, 0)
    return lambda there: (
        (ram is None or there.total + total <= ram) and (vram is None or there.on_device + on_device <= vram)
    )


def _models(name: str, type_name: str | None) -> tuple[list[tuple[str, PlannedModel]], ModelConfig]:
    """What to forecast: (type, model) each."""
    config = model_config(name)
    if not type_name and _is_gguf(_path_of(name)):
        return [("as it is", model_of_file(_path_of(name)))], config
    recipes = [recipe_by_name(type_name)] if type_name else list(ALL)
    return [(recipe.name, model_of_recipe(name, config, recipe)) for recipe in recipes], config


def model_config(name: str) -> ModelConfig:
    """Of a GGUF file, of a checkpoint's folder, or of a member of the family."""
    path = _path_of(name)
    if _is_gguf(path):
        model = model_of_file(path)
        return config_of(model.dimensions, tied="output.weight" not in model.tensors)
    if path.is_dir():
        return read_config(read_json(path / "config.json", 1 << 20, CheckpointError), path / "config.json")
    short = name.lower().removeprefix("deepseek-coder-").removesuffix("-instruct").removesuffix("-base")
    if short not in FAMILY:
        raise OptionError(f"{name}: no such file or folder, and none of the family: {', '.join(FAMILY)}")
    return FAMILY[short]


def _path_of(name: str) -> Path:
    """A model of the model folder, or the path that `name` is."""
    stored = None if Path(name).exists() else find_stored(name)
    return stored.path if stored else Path(name)


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" or path.is_file()


def _one(shared: dict[str, Any], planned: dict[str, Any]) -> Iterator[str]:
    yield f"{printable(shared['model'])}, {planned['type']}, n_ctx {shared['n_ctx']}, KV cache in {shared['kv_type']}"
    for key, what in (
        ("weights", "weights, the whole file"),
        ("kv_cache", "KV cache, when full"),
        ("work", "buffers of a step"),
        ("tokenizer", "tokenizer"),
        ("runtime", "interpreter and libraries"),
        ("draft_model", "draft model, the same of it"),
        ("total", "in all"),
    ):
        if key == "draft_model" and not planned[key]:
            continue
        yield f"{shown(planned[key]):>10}  {what}"
    if shared["vram"]:
        yield f"{shown(planned['on_device']):>10}  of it on a GPU"
    if planned["fits"] is not None:
        budget = " and ".join(f"{shown(shared[key])} of {key.upper()}" for key in ("ram", "vram") if shared[key])
        yield f"{'fits' if planned['fits'] else 'does not fit'} in {budget}"
    if planned["advice"]:
        yield f"to make it fit{' beside the draft model' if planned['draft_model'] else ''}, one of these:"
        for line in planned["advice"]:
            yield f"  {line}"
    if shared["n_ctx"] > shared["n_ctx_train"]:
        yield f"note: the model was trained for {shared['n_ctx_train']} positions"


def _table(shared: dict[str, Any], plans: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{printable(shared['model'])}, n_ctx {shared['n_ctx']}, KV cache in {shared['kv_type']}"
    yield f"{'type':8} {'file':>10} {'KV cache':>10} {'the rest':>10} {'in all':>10}"
    for p in sorted(plans, key=lambda p: (p["weights"], p["type"])):
        rest = p["work"] + p["tokenizer"] + p["runtime"] + p["draft_model"]
        sizes = " ".join(f"{shown(n):>10}" for n in (p["weights"], p["kv_cache"], rest, p["total"]))
        yield f"{p['type']:8} {sizes}" + ("" if p["fits"] is None else "  fits" if p["fits"] else "  does not fit")
