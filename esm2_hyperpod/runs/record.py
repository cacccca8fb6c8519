"""What a run leaves to be read: `run.json`, `metrics.jsonl`, a heartbeat (`training_curve.png`: curve.py).

`run.json` holds the options and one entry of `sessions` for each start: when it `started` and `ended`, the
steps it went `from_step` and `reached_step`, whether it was `broken_off` (a killed start cannot record its
end; the next one does, from the heartbeat), and `saved_at`, the time of the checkpoint it resumed from.
"""

import contextlib
import json
import math
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from esm2_hyperpod.artifacts import write_json_atomically, write_text_atomically
from esm2_hyperpod.errors import UserError

RUN, METRICS, CURVE, HEARTBEAT = "run.json", "metrics.jsonl", "training_curve.png", ".heartbeat"
RUNNING, CONTINUED, FINISHED = "running", "to be continued", "finished"


def read_run(output_dir: Path) -> dict[str, Any] | None:
    """The record of what ran in `output_dir`, or None if nothing has. Raises `UserError` if it is corrupt."""
    path = output_dir / RUN
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{output_dir}: {RUN} is corrupt ({error}); move it away, the checkpoints are kept"
        ) from None


def begin_run(
    output_dir: Path,
    options: dict[str, Any],
    facts: dict[str, Any],
    from_step: int = 0,
    saved_at: str | None = None,
) -> None:
    """Record that a run starts, or resumes at `from_step`; earlier starts are kept in `sessions`.

    `options` are what makes the run this run: another start with other options is another run.
    `facts` describe this start: processes, device, versions.
    """
    earlier = (read_run(output_dir) or {}).get("sessions", [])
    started = _iso(psutil.Process().create_time())  # imports and reading the data are part of the time
    session = {"started": started, "from_step": from_step, "saved_at": saved_at, **facts}
    content = {"status": RUNNING, "options": options, "sessions": [*earlier, session]}
    write_json_atomically(output_dir / RUN, content)


def tracker_ids(output_dir: Path) -> dict[str, str]:
    """The run's ids with Weights & Biases and MLflow, by tracker, as its starts have recorded them."""
    sessions = (read_run(output_dir) or {}).get("sessions", [])
    return {name: run for session in sessions for name, run in session.get("trackers", {}).items()}


def end_run(output_dir: Path, status: str, steps: int, **facts: Any) -> None:
    """Record how the last start ended, after which step; `facts` are added at the top level."""
    run = read_run(output_dir)
    assert run is not None
    run["sessions"][-1] |= {"ended": now(), "reached_step": steps}
    write_json_atomically(output_dir / RUN, {**run, "status": status, "steps": steps, **facts})
    (output_dir / HEARTBEAT).unlink(missing_ok=True)


def end_broken_session(output_dir: Path) -> None:
    """Record when and where a start ended that could not do so itself, before its logs are forgotten."""
    run = read_run(output_dir)
    if run is None or "ended" in run["sessions"][-1]:
        return
    session = run["sessions"][-1]
    step, last_seen = read_heartbeat(output_dir) or (session["from_step"], session["started"])
    logged = [line["step"] for line in read_metrics(output_dir)]
    reached = max([step, session["from_step"], *logged])
    session |= {"ended": last_seen, "reached_step": reached, "broken_off": True}
    write_json_atomically(output_dir / RUN, run)
    (output_dir / HEARTBEAT).unlink(missing_ok=True)


def beat(output_dir: Path, step: int) -> None:
    """Leave a sign of life: the optimizer step and the time. A full disk must not end the run for it."""
    temporary = output_dir / f".{HEARTBEAT}.tmp"
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps({"step": step, "time": now()}), encoding="utf-8")
        temporary.replace(output_dir / HEARTBEAT)


def read_heartbeat(output_dir: Path) -> tuple[int, str] | None:
    """Step and time of the last sign of life, or None where there is none."""
    try:
        content = json.loads((output_dir / HEARTBEAT).read_text(encoding="utf-8"))
        return content["step"], content["time"]
    except (OSError, ValueError, KeyError):
        return None


def place() -> dict[str, Any]:
    """Facts about where a start runs: the number of nodes, and the Slurm job where there is one."""
    facts = {"nodes": int(os.environ.get("GROUP_WORLD_SIZE", "1"))}  # torchrun has one agent a node
    if "SLURM_JOB_ID" in os.environ:
        facts["slurm_job"] = os.environ["SLURM_JOB_ID"]
    return facts


def is_finished(run: dict[str, Any], last_step: int | None = None) -> bool:
    """Whether nothing is left to do, up to `last_step` where the length of a run can be changed."""
    done = last_step is None or run.get("stopped_early") or run.get("steps", 0) >= last_step
    return run["status"] == FINISHED and bool(done)


def now() -> str:
    """UTC time to the second, ISO 8601."""
    return _iso(time.time())


def modified_at(path: Path) -> str:
    """When a file was last written, as `now` gives times."""
    return _iso(path.stat().st_mtime)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def append_metrics(output_dir: Path, line: dict[str, Any]) -> None:
    """Add one JSON object to `metrics.jsonl`. Numbers that JSON lacks become null."""
    clean = {key: None if _not_finite(value) else value for key, value in line.items()}
    with open(output_dir / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(clean) + "\n")


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`; a last line cut short by a crash is left out."""
    path = output_dir / METRICS
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def forget_metrics_after(output_dir: Path, step: int) -> None:
    """Drop what was logged after the checkpoint that a run resumes from: those steps run again."""
    if (output_dir / METRICS).is_file():
        kept = [line for line in read_metrics(output_dir) if line["step"] <= step]
        write_text_atomically(output_dir / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
