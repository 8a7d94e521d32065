"""The picture of `fewstep data check`: how large the images are, their shapes, their captions, and what stands out."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.data.check import ImageLook, Report
from fewstep.errors import number_of, printable
from fewstep.images import on_white, opened

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"
OUTLIERS = 6  # pictures that are shown
SIDE = 160  # pixels of each of them


def draw_report(path: Path, report: Report, source: str) -> Path:
    """The PNG, drawn now."""
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    figure = Figure(figsize=(13, 8), layout="constrained")
    grid = GridSpec(2, OUTLIERS, figure=figure, height_ratios=(1.6, 1))
    third = OUTLIERS // 3
    draw_sizes(figure.add_subplot(grid[0, :third]), report)
    draw_shapes(figure.add_subplot(grid[0, third : 2 * third]), report)
    draw_captions(figure.add_subplot(grid[0, 2 * third :]), report)
    for place, (title, look) in enumerate(outliers(report.looks)):
        draw_outlier(figure.add_subplot(grid[1, place]), title, look, look.name_in(source))
    figure.suptitle(f"{printable(source, 90)}: {number_of(len(report.looks), 'image')}")
    figure.savefig(path, format="png", dpi=100)
    return path


def draw_sizes(axes: Any, report: Report) -> None:
    """Width and height of each image, and the size that the model is trained at."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    small = [look.smaller_side < report.size for look in report.looks]
    for below, colour in ((False, BLUE), (True, ORANGE)):
        dots = [look for look, is_small in zip(report.looks, small, strict=True) if is_small == below]
        label = f"{'below' if below else 'at least'} {report.size} pixels"
        widths, heights = [look.width for look in dots], [look.height for look in dots]
        axes.plot(widths, heights, "o", color=colour, alpha=0.5, markersize=4, label=label, markeredgewidth=0)
    axes.axhline(report.size, color=GREY, linewidth=0.8)
    axes.axvline(report.size, color=GREY, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="width in pixels", ylabel="height in pixels", title="sizes")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    finish(axes)


def draw_shapes(axes: Any, report: Report) -> None:
    """How many images have which shape."""
    shapes = report.shapes
    axes.barh(list(shapes), list(shapes.values()), color=BLUE)
    axes.set(title="shapes, width : height", xlabel="images")
    finish(axes)


def draw_captions(axes: Any, report: Report) -> None:
    """How long captions are, and what the model reads of them."""
    if not report.lengths:
        axes.set_axis_off()
        return
    axes.hist(report.lengths, bins=min(40, max(report.lengths)), color=BLUE)
    if max(report.lengths) > report.limit / 2:
        axes.axvline(report.limit, color=ORANGE, linewidth=1.2)
        style = {"color": ORANGE, "fontsize": 8, "va": "top", "transform": axes.get_xaxis_transform()}
        axes.text(report.limit, 1, " the model's limit", **style)
    axes.set(title="captions", xlabel="tokens", ylabel="captions")
    finish(axes)


def finish(axes: Any) -> None:
    """Take away what is not data."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def outliers(looks: Sequence[ImageLook]) -> list[tuple[str, ImageLook]]:
    """The images that are unlike the others, each once, and what is unlike in them."""
    pixels = np.frombuffer(b"".join(look.thumbnail for look in looks), np.uint8).reshape(len(looks), -1)
    plainness = {id(look): float(deviation) for look, deviation in zip(looks, pixels.std(axis=1), strict=True)}
    mean = pixels.mean(axis=0)
    distance = {id(look): float(np.abs(row - mean).mean()) for look, row in zip(looks, pixels, strict=True)}
    orders = {
        "smallest": lambda look: look.width * look.height,
        "largest": lambda look: -look.width * look.height,
        "widest": lambda look: -look.ratio,
        "tallest": lambda look: look.ratio,
        "plainest": lambda look: plainness[id(look)],
        "farthest from the mean": lambda look: -distance[id(look)],
    }
    found: list[tuple[str, ImageLook]] = []
    for title, order in orders.items():
        taken = {look.sha256 for _, look in found}
        rest = [look for look in looks if look.sha256 not in taken]
        if rest:
            found.append((title, min(rest, key=order)))
    return found


def draw_outlier(axes: Any, title: str, look: ImageLook, name: str) -> None:
    """The image, small, with its size and the end of its name."""
    image = on_white(opened(look.sample.open(), look.sample.key))
    image.thumbnail((SIDE, SIDE))
    axes.imshow(np.asarray(image))
    axes.set_title(f"{title}\n{look.width} x {look.height}", fontsize=9)
    axes.set_xlabel("\n".join(textwrap.wrap(printable(name[-44:]), 22)), fontsize=7)
    axes.set(xticks=[], yticks=[])
