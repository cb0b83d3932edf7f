"""The picture that people choose a type by: file size against KL divergence. Needs matplotlib, an optional extra."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localcoder.convert.recipes import ALL
from localcoder.errors import OptionError
from localcoder.files.atomic import write_file

FORMATS = (".png", ".svg")
_INK, _MUTED, _GRID, _LINE, _DOT = "#1b1b1b", "#666666", "#e4e4e4", "#b8cbe0", "#1f5f99"


def check_plot_target(path: Path) -> None:
    """OptionError if `path` is no picture that can be drawn, or there is no matplotlib: before anything is measured."""
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"{path}: a plot's name ends in {' or '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError(
            "--plot needs matplotlib, which is not installed: add it (`python -m pip install matplotlib`), or install "
            "localcoder-runtime with its extra [plot]"
        )


def plot_divergences(models: Sequence[Mapping[str, Any]], path: Path, *, base_name: str, text_name: str) -> None:
    """Draws one dot a model.

    Args:
        models: with `model` (path), `file_type`, `file_bytes`, `kl_divergence` and `kl_divergence_se`.
        path: .png or .svg.

    Raises:
        OptionError: see `check_plot_target`; or no model differs from the base.
        OutputError: the file cannot be written.
    """
    check_plot_target(path)
    points = [point for point in map(_Point, models) if point.kl > 0]
    if not points:
        raise OptionError("nothing to plot: no file differs from the base")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, sorted(points, key=lambda point: point.gigabytes))
    axes.set_title("Smaller is further from the original", loc="left", fontsize=13, color=_INK, pad=26)
    axes.text(
        0, 1.025, f"mean KL divergence to {base_name} on {text_name}; bars: 95% confidence; lower left is better",
        transform=axes.transAxes, fontsize=9, color=_MUTED,
    )  # fmt: skip
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower(), dpi=160, metadata={"Date": None} if _is_svg(path) else None)
    write_file(path, picture.getvalue())


def _is_svg(path: Path) -> bool:
    return path.suffix.lower() == ".svg"


class _Point:
    def __init__(self, model: Mapping[str, Any]) -> None:
        names = {recipe.file_type: recipe.name for recipe in ALL}
        self.label = names.get(model["file_type"], Path(model["model"]).stem)
        self.gigabytes = model["file_bytes"] / 1e9
        self.kl = model["kl_divergence"]
        self.error = 1.96 * (model["kl_divergence_se"] or 0.0)


def _draw(axes: Any, points: Sequence[_Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    sizes, values = [p.gigabytes for p in points], [p.kl for p in points]
    # A bar on a logarithmic axis cannot reach zero.
    below = [min(p.error, 0.9 * p.kl) for p in points]
    best = _frontier(points)
    axes.set_yscale("log")
    axes.plot([p.gigabytes for p in best], [p.kl for p in best], color=_LINE, linewidth=2, zorder=1)
    bars = [below, [p.error for p in points]]
    axes.errorbar(sizes, values, bars, fmt="o", color=_DOT, ecolor=_DOT, elinewidth=1, markersize=6, zorder=2)
    for p in points:
        ahead = p in best
        axes.annotate(
            p.label, (p.gigabytes, p.kl), xytext=(7, 5), textcoords="offset points",
            fontsize=9.5, color=_INK if ahead else _MUTED, fontweight="bold" if ahead else "normal",
        )  # fmt: skip
    axes.set_xlabel("file size, GB", color=_INK)
    axes.set_ylabel("KL divergence, nats (log scale)", color=_INK)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.12)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _frontier(points: Sequence[_Point]) -> list[_Point]:
    """Those that no other point beats in both size and divergence, by size."""
    best: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.gigabytes, p.kl)):
        if not best or point.kl < best[-1].kl:
            best.append(point)
    return best
