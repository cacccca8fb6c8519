"""`training_curve.png`: loss, learning rate and speed of a run, over steps and tokens."""

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from esm2_hyperpod.figures import (
    BLUE,
    GREEN,
    GREY,
    RED,
    WIDTH,
    add_title,
    count_axis,
    name_line,
    new_figure,
    save_figure,
    short,
)
from esm2_hyperpod.runs.record import CURVE, read_metrics, read_run

POINTS = 400
"""More logs than that are drawn as medians of neighbours, over a shade of all."""
GUESSING = "guessing by residue frequency"


def plot_training_curve(output_dir: Path, frequency_entropy: float | None, path: Path | None = None) -> None:
    """Draw the metrics of a run: losses, learning rate, throughput; a mark where it was resumed.

    A log whose figure is missing leaves a gap; a loss far above all others leaves the picture at its top.

    Args:
        frequency_entropy: the loss of guessing by residue frequency, in nats, as the losses are.
        path: the picture; `training_curve.png` of the run if left out.
    """
    run, lines = read_run(output_dir) or {}, read_metrics(output_dir)
    from matplotlib.ticker import MaxNLocator

    options, sessions = run.get("options", {}), run.get("sessions", [])
    figure, panels = new_figure(WIDTH, 6.5, rows=3, sharex=True, height_ratios=[3, 1, 1])
    loss, rate, speed = panels
    add_title(figure, _title(options, sessions))
    training, validation = (_column(lines, key) for key in ("loss", "eval_loss"))
    _draw(loss, training, BLUE, "training")
    if validation[0]:
        loss.plot(*validation, "o-", color=RED, markersize=4, label="validation")
    if frequency_entropy is not None:
        name_line(loss, frequency_entropy, GUESSING)
    loss.set(ylabel="cross entropy of\nmasked tokens (nats)")
    _limit(loss, [*training[1], *validation[1]], frequency_entropy)
    _draw(rate, _column(lines, "learning_rate"), GREEN)
    rate.set(ylabel="learning\nrate", ylim=(0, None))
    residues = _column(lines, "residues_per_second")
    _draw(speed, residues, GREY)
    speed.set(ylabel="residues/s", ylim=(0, None), xlabel="optimizer step")
    if found := [value for value in residues[1] if not math.isnan(value)]:
        name_line(speed, statistics.median(found), _speed(statistics.median(found), lines))
        speed.set_ylim(0, 1.35 * np.percentile(found, 95))
    resumed = {session["from_step"] for session in sessions} - {0}
    for axes in panels:
        for step, name in zip(sorted(resumed), ("resumed", *[None] * len(resumed))):
            axes.axvline(step, color=GREY, linewidth=0.8, linestyle=":", label=name)
    if loss.get_legend_handles_labels()[0]:
        loss.legend(loc="upper right")
    speed.set_xlim(0, 1.03 * max([1, *(line["step"] for line in lines)]))
    speed.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    for axis in (speed.xaxis, speed.yaxis):
        count_axis(axis)
    if tokens := options.get("global_batch_tokens"):
        top = loss.secondary_xaxis("top", functions=(lambda step: step * tokens, lambda seen: seen / tokens))
        top.set_xlabel("tokens")
        count_axis(top.xaxis)
    save_figure(figure, path or output_dir / CURVE)


def _title(options: dict[str, Any], sessions: list[dict[str, Any]]) -> str:
    name = options.get("model_name_or_path") or f"ESM-2 {options.get('model_size', '')}".strip()
    name = short(name, 40)
    last = sessions[-1] if sessions else {}
    if device := last.get("device"):
        name += f", {last.get('processes', 1)} x {device}"
    return name + (" (synthetic proteins)" if last.get("synthetic_data") else "")


def _column(lines: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps, and one figure of each log that has it; one that was no number is NaN, which leaves a gap."""
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [math.nan if value is None else value for _, value in found]


def _draw(axes, points: tuple[list[float], list[float]], colour: str, label: str | None = None) -> None:
    steps, values = points
    if len(steps) > POINTS:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        steps, values = (
            [float(np.median(part)) for part in np.array_split(of, POINTS)] for of in (steps, values)
        )
    axes.plot(steps, values, color=colour, label=label, marker="o" if len(steps) == 1 else None)


def _limit(axes, losses: list[float], reference: float | None) -> None:
    """Leave out the few losses that would press all others into a line; where there are any, say so."""
    seen = [value for value in losses if not math.isnan(value)]
    if not seen:
        return
    usual = float(np.percentile(seen, 98))
    low = min([*seen, reference or math.inf])
    high = max(max(seen) if max(seen) < 1.5 * usual else 1.2 * usual, reference or 0, low + 0.2)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
    if max(seen) > high:
        text = f"highest: {max(seen):.3g}"
        axes.text(0.01, 0.98, text, transform=axes.transAxes, va="top", color=GREY, fontsize=10)


def _speed(median: float, lines: list[dict[str, Any]]) -> str:
    used = [line["mfu"] for line in lines if line.get("mfu") is not None]
    return f"median {median:,.0f}" + (f", MFU {statistics.median(used):.0%}" if used else "")
