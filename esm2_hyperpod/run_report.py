"""What a run leaves to be read: `run.json`, `metrics.jsonl` and `training_curve.png`."""

import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from esm2_hyperpod.artifacts import write_json_atomically, write_text_atomically

RUN, METRICS, CURVE = "run.json", "metrics.jsonl", "training_curve.png"
RUNNING, CONTINUED, FINISHED = "running", "to be continued", "finished"


def read_run(output_dir: Path) -> dict[str, Any] | None:
    """The record of what ran in `output_dir`, or None if nothing has."""
    path = output_dir / RUN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def begin_run(output_dir: Path, options: dict[str, Any], facts: dict[str, Any], from_step: int) -> None:
    """Record that a run starts, or goes on at `from_step`; earlier starts are kept in `sessions`.

    `options` are what makes the run this run: another start with other options is another run.
    `facts` describe this start: processes, device, versions.
    """
    earlier = (read_run(output_dir) or {}).get("sessions", [])
    session = {"started": now(), "from_step": from_step, **facts}
    content = {"status": RUNNING, "options": options, "sessions": [*earlier, session]}
    write_json_atomically(output_dir / RUN, content)


def end_run(output_dir: Path, status: str, **facts: Any) -> None:
    """Record how the last start ended; `facts` are added at the top level."""
    run = read_run(output_dir)
    assert run is not None
    run["sessions"][-1]["ended"] = now()
    write_json_atomically(output_dir / RUN, {**run, "status": status, **facts})


def is_finished(run: dict[str, Any], last_step: int) -> bool:
    """Whether nothing is left to do up to `last_step`."""
    return run["status"] == FINISHED and (run["steps"] >= last_step or run["stopped_early"])


def now() -> str:
    """UTC time to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


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
    """Drop what was logged after the checkpoint that a run goes on from: those steps run again."""
    if (output_dir / METRICS).is_file():
        kept = [line for line in read_metrics(output_dir) if line["step"] <= step]
        write_text_atomically(output_dir / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def plot_training_curve(output_dir: Path, frequency_entropy: float | None) -> None:
    """Draw training and validation loss over steps, with the residue-frequency entropy as the bar to beat.

    `frequency_entropy` is in nats, as the losses are.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(output_dir)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points), style, label=label, markersize=4)
    if frequency_entropy is not None:
        axes.axhline(frequency_entropy, color="grey", linestyle="--", label="guessing by residue frequency")
    axes.set(xlabel="optimizer step", ylabel="masked-token cross entropy (nats)")
    axes.legend()
    temporary = output_dir / f".{CURVE}.tmp"
    figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
    temporary.replace(output_dir / CURVE)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
