"""Pictures, drawn without a display."""

from pathlib import Path

from esm2_hyperpod.artifacts import whole_file


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure of so many inches, and its panels as a list, row by row."""
    from matplotlib.figure import Figure  # slow to import; pyplot would choose a window system

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save_figure(figure, path: Path) -> None:
    """Write the figure as PNG, whole or not at all."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
