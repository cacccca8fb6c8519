"""How runs are doing, from the files they leave; needs no cluster and disturbs nothing.

python -m esm2_hyperpod.runs.status runs/ddp          one run
python -m esm2_hyperpod.runs.status /fsx/$USER/runs   all runs below a folder
"""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from esm2_hyperpod.command_line import Parser
from esm2_hyperpod.errors import UserError, run_script
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


def main() -> None:
    """Print the status of each run given or found."""
    parser = Parser(prog="python -m esm2_hyperpod.runs.status", description="The state of runs.")
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
    except UserError as error:
        return str(error)
    steps = [line for line in read_metrics(output_dir) if line.get("loss") is not None]
    figures = report.summarize(output_dir)
    starts = ", ".join(str(session["from_step"]) for session in run["sessions"])
    lost = report.interruptions(figures["seconds"], figures["failures"])
    rows = {
        "progress": progress(run, steps, output_dir),
        "speed": report.speed(report.medians(steps[-10:])),
        "loss": report.curve([line["loss"] for line in steps[-40:]]),
        "validation": report.validation(figures),
        "starts": f"from step {starts}; interruptions: {lost}",
        "checkpoint": checkpoint(output_dir, at),
    }
    body = "\n".join(f"  {name:<11} {text}" for name, text in rows.items() if text)
    return f"{output_dir}: {state(run, output_dir, at)}\n{body}"


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
    if silent < SILENT:
        return RUNNING
    length = report.duration(silent.total_seconds())
    return f"silent for {length}: waiting in the queue, or dead; run the same command again to resume"


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
    return text + "".join(f"\n{'':14}{line}" for line in skipped)


if __name__ == "__main__":
    run_script(main)
