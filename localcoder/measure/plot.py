"""The pictures that people choose a type by: file size against KL divergence, and against solved problems.

They need matplotlib, an optional extra.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        models: with `model` (path), `file_bytes`, `kl_divergence` and `kl_divergence_se`.
        path: .png or .svg.

    Raises:
        OptionError: see `check_plot_target`; or no model differs from the base.
        OutputError: the file cannot be written.
    """
    check_plot_target(path)
    differing = [model for model in models if model["kl_divergence"] > 0]
    if not differing:
        raise OptionError("nothing to plot: no file differs from the base")
    errors = [1.96 * (model["kl_divergence_se"] or 0.0) for model in differing]
    points, unit_name = _points(differing, [model["kl_divergence"] for model in differing], errors)
    _picture(
        points, path, unit_name, _draw_divergences,
        title="File size and distance from the original",
        subtitle=f"mean KL divergence to {base_name} on {text_name}; bars: 95% confidence; lower left is better",
    )  # fmt: skip


def plot_pass_rates(models: Sequence[Mapping[str, Any]], path: Path, *, name: str) -> None:
    """Draws one dot a model: the share of problems that it solves.

    Args:
        models: with `model` (path), `file_bytes`, `pass@1` (0 to 1, or None), `passed` and `failed`.
        path: .png or .svg.
        name: of the problems.

    Raises:
        OptionError: see `check_plot_target`; or nothing was run.
        OutputError: the file cannot be written.
    """
    check_plot_target(path)
    ran = [model for model in models if model["pass@1"] is not None]
    if not ran:
        raise OptionError("nothing to plot: no program was run")
    rates = [model["pass@1"] for model in ran]
    errors = [1.96 * math.sqrt(p * (1 - p) / (m["passed"] + m["failed"])) for p, m in zip(rates, ran)]
    points, unit_name = _points(ran, [100 * p for p in rates], [100 * error for error in errors])
    _picture(
        points, path, unit_name, _draw_pass_rates,
        title="File size and solved problems",
        subtitle=f"pass@1 on {name}; bars: 95% confidence; upper left is better",
    )  # fmt: skip


def _points(
    models: Sequence[Mapping[str, Any]], values: Sequence[float], errors: Sequence[float]
) -> tuple[list[_Point], str]:
    """The models' places, and the unit of their sizes."""
    names = short_names([Path(model["model"]).stem for model in models])
    unit, unit_name = (1e9, "GB") if max(model["file_bytes"] for model in models) >= 1e8 else (1e6, "MB")
    sizes = [model["file_bytes"] / unit for model in models]
    return [_Point(*place) for place in zip(names, sizes, values, errors)], unit_name


def _picture(
    points: Sequence[_Point],
    path: Path,
    unit_name: str,
    draw: Callable[[Any, Sequence[_Point]], list[_Point]],
    *,
    title: str,
    subtitle: str,
) -> None:
    """Draws points with their names, and writes the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = draw(axes, points)
    axes.margins(x=0.12, y=0.12)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"file size, {unit_name}", color=_INK)
    axes.set_title(title, loc="left", fontsize=13, color=_INK, pad=26)
    axes.text(0, 1.025, subtitle, transform=axes.transAxes, fontsize=9, color=_MUTED)
    figure.draw_without_rendering()  # from here on, positions on the canvas are known
    figure.set_layout_engine("none")
    _label(axes, sorted(points, key=lambda point: (point not in best, point.size)), best)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower(), dpi=160, metadata={"Date": None} if _is_svg(path) else None)
    write_file(path, picture.getvalue())


def _is_svg(path: Path) -> bool:
    return path.suffix.lower() == ".svg"


def short_names(stems: Sequence[str]) -> list[str]:
    """File names without the words, ended by a dash or dot, that all begin with: `coder-q4_0` becomes `q4_0`."""
    words = zip(*(re.findall(r"[^-.]*[-.]", stem) for stem in stems)) if len(stems) > 1 else ()
    n = sum(len(same[0]) for same in itertools.takewhile(lambda same: len({*same}) == 1, words))
    return [stem[n:] or stem for stem in stems]


@dataclass(frozen=True)
class _Point:
    """A model's place in the picture, and half of its bar."""

    label: str
    size: float
    value: float
    error: float


def _draw_pass_rates(axes: Any, points: Sequence[_Point]) -> list[_Point]:
    """As `_draw_divergences`; no line: a problem more or less is chance."""
    bars = [p.error for p in points]
    sizes, values = [p.size for p in points], [p.value for p in points]
    axes.errorbar(sizes, values, bars, fmt="o", color=_DOT, ecolor=_DOT, elinewidth=1, markersize=6, zorder=2)
    axes.set_ylabel("pass@1, %", color=_INK)
    return [p for p in points if not any(q.size <= p.size and q.value > p.value for q in points)]


def _draw_divergences(axes: Any, points: Sequence[_Point]) -> list[_Point]:
    """Draws all but the labels; returns the points of the line."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    sizes, values = [p.size for p in points], [p.value for p in points]
    # A bar on a logarithmic axis cannot reach zero.
    below = [min(p.error, 0.9 * p.value) for p in points]
    best = _frontier(points)
    axes.set_yscale("log")
    axes.plot([p.size for p in best], [p.value for p in best], color=_LINE, linewidth=2, zorder=1)
    bars = [below, [p.error for p in points]]
    axes.errorbar(sizes, values, bars, fmt="o", color=_DOT, ecolor=_DOT, elinewidth=1, markersize=6, zorder=2)
    axes.set_ylabel("KL divergence, nats (log scale)", color=_INK)
    is_wide = max(values) > 1e4 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if is_wide else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    return best


def _label(axes: Any, points: Sequence[_Point], best: Sequence[_Point]) -> None:
    """Writes each point's name beside it, at the nearest place that covers no other name or point."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    scale = axes.figure.dpi / 72
    renderer = axes.figure.canvas.get_renderer()
    dots = [axes.transData.transform((p.size, p.value)) for p in points]
    taken = [Bbox.from_bounds(x - 4 * scale, y - 4 * scale, 8 * scale, 8 * scale) for x, y in dots]
    places = list(itertools.product((9, 18, 30, 44, 60, 80), (40, 20, 70, 140, 160, 110, -40, -140, -70)))
    for p in points:
        ahead = p in best
        for n_tried, (distance, angle) in enumerate(places, 1):
            x, y = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
            text = axes.annotate(
                p.label, (p.size, p.value), xytext=(x, y), textcoords="offset points",
                ha="left" if x > 0 else "right", va="center", fontsize=9.5,
                color=_INK if ahead else _MUTED, fontweight="bold" if ahead else "normal",
                arrowprops={"arrowstyle": "-", "color": _MUTED, "linewidth": 0.6} if distance > 9 else None,
            )  # fmt: skip
            text.update_positions(renderer)
            box = Bbox(Text.get_window_extent(text, renderer))  # without its line
            if n_tried == len(places) or not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        taken.append(box)


def _frontier(points: Sequence[_Point]) -> list[_Point]:
    """Those that no other point beats in both size and divergence, by size."""
    best: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.size, p.value)):
        if not best or point.value < best[-1].value:
            best.append(point)
    return best
