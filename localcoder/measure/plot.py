"""The picture that people choose a type by: file size against KL divergence. Needs matplotlib, an optional extra."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
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
    names = short_names([Path(model["model"]).stem for model in models])
    unit, unit_name = (1e9, "GB") if max(model["file_bytes"] for model in models) >= 1e8 else (1e6, "MB")
    points = [_Point(name, model, unit) for name, model in zip(names, models) if model["kl_divergence"] > 0]
    if not points:
        raise OptionError("nothing to plot: no file differs from the base")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = _draw(axes, points)
    axes.set_xlabel(f"file size, {unit_name}", color=_INK)
    axes.set_title("File size and distance from the original", loc="left", fontsize=13, color=_INK, pad=26)
    axes.text(
        0, 1.025, f"mean KL divergence to {base_name} on {text_name}; bars: 95% confidence; lower left is better",
        transform=axes.transAxes, fontsize=9, color=_MUTED,
    )  # fmt: skip
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


class _Point:
    """A model's place in the picture; `size` is in `unit` bytes."""

    def __init__(self, label: str, model: Mapping[str, Any], unit: float) -> None:
        self.label = label
        self.size = model["file_bytes"] / unit
        self.kl = model["kl_divergence"]
        self.error = 1.96 * (model["kl_divergence_se"] or 0.0)


def _draw(axes: Any, points: Sequence[_Point]) -> list[_Point]:
    """Draws all but the labels; returns the points of the line."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    sizes, values = [p.size for p in points], [p.kl for p in points]
    # A bar on a logarithmic axis cannot reach zero.
    below = [min(p.error, 0.9 * p.kl) for p in points]
    best = _frontier(points)
    axes.set_yscale("log")
    axes.plot([p.size for p in best], [p.kl for p in best], color=_LINE, linewidth=2, zorder=1)
    bars = [below, [p.error for p in points]]
    axes.errorbar(sizes, values, bars, fmt="o", color=_DOT, ecolor=_DOT, elinewidth=1, markersize=6, zorder=2)
    axes.set_ylabel("KL divergence, nats (log scale)", color=_INK)
    is_wide = max(values) > 1e4 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if is_wide else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.12)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return best


def _label(axes: Any, points: Sequence[_Point], best: Sequence[_Point]) -> None:
    """Writes each point's name beside it, at the nearest place that covers no other name or point."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    scale = axes.figure.dpi / 72
    renderer = axes.figure.canvas.get_renderer()
    dots = [axes.transData.transform((p.size, p.kl)) for p in points]
    taken = [Bbox.from_bounds(x - 4 * scale, y - 4 * scale, 8 * scale, 8 * scale) for x, y in dots]
    places = list(itertools.product((9, 18, 30, 44, 60, 80), (40, 20, 70, 140, 160, 110, -40, -140, -70)))
    for p in points:
        ahead = p in best
        for n_tried, (distance, angle) in enumerate(places, 1):
            x, y = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
            text = axes.annotate(
                p.label, (p.size, p.kl), xytext=(x, y), textcoords="offset points",
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
    for point in sorted(points, key=lambda p: (p.size, p.kl)):
        if not best or point.kl < best[-1].kl:
            best.append(point)
    return best
