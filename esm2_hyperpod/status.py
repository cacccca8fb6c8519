"""How runs are doing, from the files they leave; needs no cluster and disturbs nothing.

python -m esm2_hyperpod.status runs/ddp          one run
python -m esm2_hyperpod.status /fsx/$USER/runs   all runs below a folder
"""

import argparse
import json
import statistics
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from esm2_hyperpod.checkpoints import newest_whole_checkpoint, step_of
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.run_report import METRICS, RUN, RUNNING, read_metrics, read_run

BARS = "▁▂▃▄▅▆▇█"
SILENT = timedelta(minutes=10)
"""A run that has logged nothing for so long is probably dead: a killed one cannot say so itself."""


def main() -> None:
    """Print the status of each run given or found."""
    parser = argparse.ArgumentParser(prog="python -m esm2_hyperpod.status", description="How runs are doing.")
    parser.add_argument("folders", nargs="+", type=Path, help="a run's output folder, or a folder above runs")
    runs = [run for folder in parser.parse_args().folders for run in find_runs(folder)]
    print("\n\n".join(describe(run, datetime.now(timezone.utc)) for run in runs))


def find_runs(folder: Path) -> list[Path]:
    """The output folders at or below `folder`. Raises `UserError` if there is none."""
    runs = sorted(path.parent for path in folder.rglob(RUN))
    if not runs:
        raise UserError(f"{folder}: no {RUN} there or below; give the --output_dir of a run that has started")
    return runs


def describe(output_dir: Path, at: datetime) -> str:
    """A few lines about one run as it is at the time `at`."""
    try:
        run = read_run(output_dir)
        assert run is not None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"{output_dir}: {RUN} is damaged ({error})"
    lines = read_metrics(output_dir)
    steps = [line for line in lines if line.get("loss") is not None]
    rows = {
        "progress": progress(run, steps),
        "speed": speed(steps[-10:]),
        "loss": curve([line["loss"] for line in steps[-40:]]),
        "validation": validation(lines),
        "starts": starts(run["sessions"]),
        "checkpoint": checkpoint(output_dir, at),
    }
    body = "\n".join(f"  {name:<11} {text}" for name, text in rows.items() if text)
    return f"{output_dir}: {state(run, output_dir, at)}\n{body}"


def state(run: dict[str, Any], output_dir: Path, at: datetime) -> str:
    """The recorded status, and whether a "running" run still says something."""
    if run["status"] != RUNNING:
        return run["status"]
    newest = max(
        (output_dir / name).stat().st_mtime for name in (RUN, METRICS) if (output_dir / name).exists()
    )
    silent = at - datetime.fromtimestamp(newest, timezone.utc)
    if silent < SILENT:
        return RUNNING
    return f"silent for {duration(silent)}: waiting in the queue, or dead; the same command goes on"


def progress(run: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """Steps done, of how many, and when the rest will be."""
    step = steps[-1]["step"] if steps else run["sessions"][-1]["from_step"]
    total = run["options"].get("max_steps") or 0
    text = f"step {step:,}"
    if total > 0:
        text += f" of {total:,} ({step / total:.0%})"
    eta = steps[-1].get("eta_seconds") if steps else None
    if eta and run["status"] == RUNNING:
        text += f", {duration(timedelta(seconds=eta))} to go"
    return text


def speed(steps: list[dict[str, Any]]) -> str:
    """Medians over the last logged steps: real residues, not padding, and model FLOPs utilization."""
    rates = [line["residues_per_second"] for line in steps if line.get("residues_per_second")]
    if not rates:
        return ""
    text = f"{statistics.median(rates):,.0f} residues/s"
    used = [line["mfu"] for line in steps if line.get("mfu")]
    return text + (f", MFU {statistics.median(used):.1%}" if used else "")


def curve(losses: list[float]) -> str:
    """First and last loss around a sparkline of those between."""
    if not losses:
        return ""
    low, high = min(losses), max(losses)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return f"{losses[0]:.4f} {''.join(BARS[round((loss - low) * scale)] for loss in losses)} {losses[-1]:.4f}"


def validation(lines: list[dict[str, Any]]) -> str:
    """The last evaluation's figures, with their names."""
    evaluations = [line for line in lines if line.get("eval_loss") is not None]
    if not evaluations:
        return ""
    last = evaluations[-1]
    names = [
        name for name in ("loss", "perplexity", "accuracy", "macro_f1", "mcc") if last.get(f"eval_{name}")
    ]
    return f"step {last['step']:,}: " + ", ".join(f"{name} {last[f'eval_{name}']:.4f}" for name in names)


def starts(sessions: list[dict[str, Any]]) -> str:
    """How often the run was started, from which steps, and the time between its parts where it is known."""
    text = f"{len(sessions)} (from step {', '.join(str(session['from_step']) for session in sessions)})"
    pairs = list(pairwise(sessions))
    waits = [
        datetime.fromisoformat(after["started"]) - datetime.fromisoformat(before["ended"])
        for before, after in pairs
        if "ended" in before
    ]
    if waits:
        text += f"; saved and stopped {len(waits)} time(s), {duration(sum(waits, timedelta()))} between"
    if len(waits) < len(pairs):
        text += f"; broken off {len(pairs) - len(waits)} time(s)"
    return text


def checkpoint(output_dir: Path, at: datetime) -> str:
    """The checkpoint that the run would go on from, and those that are damaged."""
    newest, passed_over = newest_whole_checkpoint(output_dir)
    text = "none yet"
    if newest is not None:
        age = at - datetime.fromtimestamp(newest.stat().st_mtime, timezone.utc)
        text = f"step {step_of(newest):,}, {duration(age)} ago"
    return text + "".join(f"\n{'':14}{line}" for line in passed_over)


def duration(length: timedelta) -> str:
    """Two units are enough: 3 d 4 h, 2 h 5 min, 40 s."""
    seconds = int(length.total_seconds())
    for unit, larger, smaller, name in (("d", 86400, 3600, "h"), ("h", 3600, 60, "min"), ("min", 60, 1, "s")):
        if seconds >= larger:
            return f"{seconds // larger} {unit} {seconds % larger // smaller} {name}"
    return f"{max(seconds, 0)} s"


if __name__ == "__main__":
    run_script(main)
