"""How runs are doing, from the files they leave; needs no cluster and disturbs nothing.

python -m esm2_hyperpod.runs.status runs/ddp          one run
python -m esm2_hyperpod.runs.status /fsx/$USER/runs   all below a folder; --watch shows them again and again
"""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from esm2_hyperpod.command_line import Parser
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.figures import short
from esm2_hyperpod.runs import report
from esm2_hyperpod.runs.checkpoints import newest_whole_checkpoint, step_of
from esm2_hyperpod.runs.record import (
    HEARTBEAT,
    METRICS,
    RUN,
    RUNNING,
    read_heartbeat,
    read_metrics,
    read_run,
)

SILENT = timedelta(minutes=10)
"""A run that has logged nothing for so long is probably dead: a killed one cannot say so itself."""


DEAD = "waiting in the queue, or dead; run the same command again to resume"
COLUMNS, INDENT = 80, 14
WATCH_SECONDS = 10
COLOURS = {"running": 32, "finished": 36, "to be continued": 33}  # as terminals number them; others are red
BOLD, DIM, RED = 1, 2, 31


def main() -> None:
    """Print the status of each run given or found."""
    parser = Parser(prog="python -m esm2_hyperpod.runs.status", description="The state of runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="a run's output folder, or a folder above runs")
    parser.add_argument(
        "--watch", action="store_true", help=f"show it every {WATCH_SECONDS} seconds, until Ctrl-C"
    )
    args = parser.parse_args()
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def status() -> str:
        runs = [run for folder in args.folders for run in find_runs(folder)]
        return "\n\n".join(describe(run, datetime.now(timezone.utc), coloured) for run in runs)

    if not args.watch:
        print(status())
        return
    try:
        while True:
            show(status())
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def show(text: str) -> None:
    """Print what is watched: in place of what the terminal shows, as much as it holds; else after it."""
    lines = [f"{datetime.now():%H:%M:%S}, every {WATCH_SECONDS} s, Ctrl-C ends it", "", *text.splitlines()]
    if sys.stdout.isatty():
        height = shutil.get_terminal_size().lines - 1
        if len(lines) > height:
            lines = [*lines[: height - 1], f"... {len(lines) - height + 1} more lines"]
        print("\033[H\033[2J", end="")
    print("\n".join(lines), flush=True)


def find_runs(folder: Path) -> list[Path]:
    """The output folders at or below `folder`. Raises `UserError` if there is none."""
    runs = sorted(path.parent for path in folder.rglob(RUN))
    if not runs:
        raise UserError(f"{folder}: no {RUN} there or below; give the --output_dir of a run that has started")
    return runs


def describe(output_dir: Path, at: datetime, coloured: bool = False) -> str:
    """A few lines about one run as it is at the time `at`, of at most 80 columns each."""
    try:
        run = read_run(output_dir)
        assert run is not None
    except UserError as error:
        problem = str(error).removeprefix(f"{output_dir}: ")
        return block(output_dir, "corrupt", {"problem": problem}, coloured)
    steps = [line for line in read_metrics(output_dir) if line.get("loss") is not None]
    figures = report.summarize(output_dir)
    starts = ", ".join(str(session["from_step"]) for session in run["sessions"])
    lost = report.interruptions(figures["seconds"], figures["failures"])
    says = state(run, output_dir, at)
    rows = {
        "problem": DEAD if says.startswith("silent") else "",
        "progress": progress(run, steps, output_dir),
        "speed": report.speed(report.medians(steps[-10:])),
        "loss": report.curve([line["loss"] for line in steps[-40:]]),
        "validation": report.validation(figures),
        "starts": f"from step {starts}; interruptions: {lost}",
        "checkpoint": checkpoint(output_dir, at),
    }
    return block(output_dir, says, rows, coloured)


def block(output_dir: Path, says: str, rows: dict[str, str], coloured: bool) -> str:
    """The name of a run, its state, and the rows that are not empty, wrapped and perhaps coloured."""
    name = short(str(output_dir), COLUMNS - len(f": {says}"))
    lines = [f"{paint(name, BOLD, coloured)}: {paint(says, COLOURS.get(says, RED), coloured)}"]
    for title, text in rows.items():
        for number, line in enumerate(wrapped(text)):
            head = paint(f"{'' if number else title:<11}", DIM, coloured)
            lines.append(f"  {head} {line}")
    return "\n".join(lines)


def wrapped(text: str) -> Iterable[str]:
    """The lines of a row, cut between words where there is one."""
    for line in text.splitlines():
        yield from textwrap.wrap(line, COLUMNS - INDENT, break_on_hyphens=False)


def paint(text: str, colour: int, coloured: bool) -> str:
    """The text in a terminal's colour."""
    return f"\033[{colour}m{text}\033[0m" if coloured else text


def state(run: dict[str, Any], output_dir: Path, at: datetime) -> str:
    """The recorded status, and whether a "running" run still says something."""
    if run["status"] != RUNNING:
        return run["status"]
    newest = max(
        path.stat().st_mtime
        for path in (output_dir / name for name in (RUN, METRICS, HEARTBEAT))
        if path.exists()
    )
    silent = at - datetime.fromtimestamp(newest, timezone.utc)
    return RUNNING if silent < SILENT else f"silent for {report.duration(silent.total_seconds())}"


def progress(run: dict[str, Any], steps: list[dict[str, Any]], output_dir: Path) -> str:
    """Steps done, of how many, and when the rest will be."""
    logged = steps[-1]["step"] if steps else run["sessions"][-1]["from_step"]
    step = max(logged, (read_heartbeat(output_dir) or (0,))[0])
    total = run["options"].get("max_steps") or 0
    text = f"step {step:,}"
    if total > 0:
        text += f" of {total:,} ({step / total:.0%})"
    eta = steps[-1].get("eta_seconds") if steps else None
    if eta and run["status"] == RUNNING:
        text += f", {report.duration(eta)} to go"
    return text


def checkpoint(output_dir: Path, at: datetime) -> str:
    """The checkpoint that the run would resume from, and those that are corrupt."""
    newest, skipped = newest_whole_checkpoint(output_dir)
    text = "none yet"
    if newest is not None:
        age = at - datetime.fromtimestamp(newest.stat().st_mtime, timezone.utc)
        text = f"step {step_of(newest):,}, {report.duration(age.total_seconds())} ago"
    names = (line.removeprefix(f"{output_dir}/") for line in skipped)  # the folder is above them
    return "\n".join([text, *names])


if __name__ == "__main__":
    run_script(main)
