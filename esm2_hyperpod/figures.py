"""Pictures, drawn without a display: one style for all, and what several of them need.

The style is for a slide or a page at half its width: large letters on a figure seven inches wide, twice the
pixels of a screen. The colours are Okabe & Ito's (2008, "Color Universal Design"), which people with any kind
of colour vision tell apart.
"""

import textwrap
from pathlib import Path

from esm2_hyperpod.artifacts import whole_file

WIDTH = 7.0  # inches
BLUE, RED, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
GREY, LIGHT = "#666666", "#BBBBBB"
STYLE = {
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": True,
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.prop_cycle": f"cycler('color', {[BLUE, RED, GREEN, ORANGE, SKY]})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "font.size": 11,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.dpi": 200,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **subplots):
    """A figure of so many inches, and its panels as a list, row by row; `subplots` as matplotlib has them.

    From here on the style is that of the process: matplotlib asks for it with each line and tick it draws.
    """
    import matplotlib  # slow
    from matplotlib.figure import Figure  # pyplot would choose a window system

    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)


def save_figure(figure, path: Path) -> None:
    """Write the figure as PNG, whole or not at all."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def add_title(figure, text: str) -> None:
    """A title over the whole figure, in as many lines as its width takes."""
    letters = max(20, int(figure.get_figwidth() * 11))
    figure.suptitle(textwrap.fill(text, letters), x=0.02, ha="left", fontsize=12)


def name_line(axes, height: float, text: str, where: float = 0.99) -> None:
    """A dashed horizontal line at `height` with its name on it, at the share `where` of the width."""
    from matplotlib.patheffects import withStroke

    axes.axhline(height, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
    axes.text(
        where,
        height,
        text,
        transform=axes.get_yaxis_transform(),
        ha="right" if where > 0.5 else "left",
        va="bottom",
        color=GREY,
        fontsize=10,
        path_effects=[withStroke(linewidth=3, foreground="white")],  # over a curve
        zorder=5,
    )


def count_axis(axis) -> None:
    """Ticks of a matplotlib axis that count things: 500, 20k, 1.5M, 3B."""
    from matplotlib.ticker import EngFormatter

    formatter = EngFormatter(sep="")
    formatter.ENG_PREFIXES = {**EngFormatter.ENG_PREFIXES, 9: "B"}  # tokens are billions, not giga
    axis.set_major_formatter(formatter)


def short(name: str, letters: int) -> str:
    """A name of at most so many letters; what is too much goes from its middle."""
    if len(name) <= letters:
        return name
    kept = letters - 1
    return f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"
