"""The report of a run: what ran, on what, how long, how fast, what failures took, what it cost.

    python -m esm2_hyperpod.runs.report runs/ddp --dollars_per_node_hour 5.672

The training scripts write `run_report.md` and `run_report.json` whenever they end; by hand it also reports a
run that was killed.
"""

import statistics
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from esm2_hyperpod.artifacts import write_json_atomically, write_text_atomically
from esm2_hyperpod.command_line import Parser
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.runs.record import CURVE, RUN, now, read_heartbeat, read_metrics, read_run

REPORT, FIGURES = "run_report.md", "run_report.json"
BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 60
SPEEDS = ("residues_per_second", "mfu", "tflops_per_device", "padding_share", "data_wait_share")


def main() -> None:
    """Write and print the report of one run."""
    parser = Parser(prog="python -m esm2_hyperpod.runs.report", description="Report a run.")
    parser.add_argument("output_dir", type=Path, help="the run's output folder")
    parser.add_argument("--dollars_per_node_hour", type=float, help="price of one node, for the cost")
    args = parser.parse_args()
    if read_run(args.output_dir) is None:
        raise UserError(f"{args.output_dir}: no {RUN} there; give the --output_dir of a run that has started")
    print(write_report(args.output_dir, args.dollars_per_node_hour))


def write_report(output_dir: Path, dollars_per_node_hour: float | None = None) -> str:
    """Write `run_report.json` and `run_report.md` into the folder of a run; returns the latter's text."""
    figures = summarize(output_dir, dollars_per_node_hour)
    text = describe(output_dir, figures)
    write_json_atomically(output_dir / FIGURES, figures)
    write_text_atomically(output_dir / REPORT, text)
    return text


def summarize(output_dir: Path, dollars_per_node_hour: float | None = None) -> dict[str, Any]:
    """The figures of a run, times in seconds."""
    run, lines = read_run(output_dir), read_metrics(output_dir)
    assert run is not None
    sessions = run["sessions"]
    logs = [line for line in lines if line.get("loss") is not None]
    evaluations = [line for line in lines if line.get("eval_loss") is not None]
    seconds, failures = failures_of(output_dir, sessions)
    node_hours = sum(_length(session, output_dir) * session.get("nodes", 1) for session in sessions) / 3600
    return {
        "status": run["status"],
        "options": run["options"],
        "last_start": sessions[-1],
        "steps": run.get("steps", max([0, *(line["step"] for line in lines)])),
        "first_started": sessions[0]["started"],
        "ended": _end(sessions[-1], output_dir),
        "seconds": seconds,
        "failures": failures,
        "residues_seen": logs[-1].get("residues_seen") if logs else 0,
        "speed": medians(logs),
        "loss": {"first": logs[0]["loss"], "last": logs[-1]["loss"]} if logs else None,
        "frequency_entropy": run.get("frequency_entropy"),
        "evaluation": evaluations[-1] if evaluations else None,
        "final_model": {"step": run["final_model_step"], "eval_loss": run.get("eval_loss")}
        if "final_model_step" in run
        else None,
        "loss_curve": [[line["step"], line["loss"]] for line in logs],
        "evaluation_curve": [[line["step"], line["eval_loss"]] for line in evaluations],
        "node_hours": node_hours,
        "cost_dollars": None if dollars_per_node_hour is None else node_hours * dollars_per_node_hour,
        "dollars_per_node_hour": dollars_per_node_hour,
    }


def failures_of(output_dir: Path, sessions: list[dict[str, Any]]) -> tuple[dict, dict]:
    """Where the time of a run went, and what its interruptions took.

    Work is lost from the last checkpoint, or from the start if none was written since, to the last sign of
    life (at most two seconds before the end). Its steps are done twice.

    Returns:
        Seconds in all, `running`, `waiting` between starts, and `lost` of those running; and the numbers
        of starts, of early stops and failures that the run resumed from, and of steps done twice.
    """
    waiting = lost = 0.0
    stopped = broken = twice = 0
    for before, after in pairwise(sessions):
        waiting += max(0.0, _seconds(before["ended"], after["started"]))
        again, broke = before["reached_step"] - after["from_step"], bool(before.get("broken_off"))
        broken, stopped, twice = broken + broke, stopped + (not broke), twice + again
        if broke or again:  # an early stop loses work too if its checkpoint was damaged afterwards
            saved = max(before["started"], after.get("saved_at") or before["started"])
            lost += max(0.0, _seconds(saved, before["ended"]))
    running = sum(_length(session, output_dir) for session in sessions)
    seconds = {"in_all": running + waiting, "running": running, "waiting": waiting, "lost": lost}
    return seconds, {
        "starts": len(sessions),
        "stopped_early": stopped,
        "broken_off": broken,
        "steps_done_twice": twice,
    }


def describe(output_dir: Path, figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = {
        "status": f"{figures['status']}, {figures['steps']:,} steps",
        "model": _model(figures["options"]),
        "ran on": _place(figures["last_start"]),
        "time": _time(figures),
        "seen": f"{figures['residues_seen']:,} residues" if figures["residues_seen"] else "",
        "speed": speed(figures["speed"]),
        "interruptions": interruptions(figures["seconds"], figures["failures"]),
        "cost": _cost(figures),
        "training loss": curve([loss for _, loss in figures["loss_curve"]]),
        "validation loss": curve([loss for _, loss in figures["evaluation_curve"]]),
        "validation": validation(figures),
        "final model": final_model(figures),
    }
    synthetic = "\n**The data are synthetic: this shows that the program works, not biology.**\n"
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items() if text)
    picture = f"\n![training and validation loss]({CURVE})\n" if (output_dir / CURVE).exists() else ""
    warning = synthetic if figures["last_start"].get("synthetic_data") else ""
    return f"# Run {output_dir.name}\n{warning}\n| | |\n|---|---|\n{table}\n{picture}"


def interruptions(seconds: dict[str, float], failures: dict[str, int]) -> str:
    """What the interruptions of a run were and took, in words."""
    if failures["starts"] == 1:
        return "none"
    text = f"{failures['starts']} starts: resumed {failures['stopped_early']} time(s) after an early stop"
    text += f", {failures['broken_off']} time(s) after a failure; {duration(seconds['waiting'])} between"
    if failures["broken_off"] or failures["steps_done_twice"]:
        text += f"; {failures['steps_done_twice']:,} steps ({duration(seconds['lost'])}) done twice"
    return text


def medians(logs: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each figure of speed over training logs."""
    return {
        name: statistics.median(values)
        for name in SPEEDS
        if (values := [line[name] for line in logs if line.get(name) is not None])
    }


def speed(medians: dict[str, float]) -> str:
    """Figures of speed in words; empty where nothing measures them."""
    if not medians:
        return ""
    used = (
        f"MFU {medians['mfu']:.1%}"
        if "mfu" in medians
        else f"{medians['tflops_per_device']:.3g} TFLOPS/device"
    )
    return (
        f"{medians['residues_per_second']:,.0f} residues/s, {used}, padding {medians['padding_share']:.1%}, "
        f"waiting for data {medians['data_wait_share']:.1%} (medians)"
    )


def validation(figures: dict[str, Any]) -> str:
    """The last evaluation in words; empty where there was none."""
    line = figures["evaluation"]
    if line is None:
        return ""
    text = f"step {line['step']:,}: " + ", ".join(
        f"{name[5:].replace('_', ' ')} {f'{value:,.0f}' if value.is_integer() else f'{value:.4f}'}"
        for name, value in line.items()
        if name.startswith("eval_") and isinstance(value, float)
    )
    if figures["frequency_entropy"]:
        text += f"; guessing by residue frequency has loss {figures['frequency_entropy']:.4f}"
    return text


def final_model(figures: dict[str, Any]) -> str:
    """Which weights final_model/ has, in words; empty where a run has not written it or writes another."""
    if (made := figures["final_model"]) is None:
        return ""
    if made["step"] == figures["steps"]:
        return f"weights of step {made['step']:,}, the last"
    return f"weights of step {made['step']:,}, the best: validation loss {made['eval_loss']:.4f}"


def curve(losses: list[float]) -> str:
    """First and last loss around a sparkline of those between."""
    if not losses:
        return ""
    kept = [losses[round(i * (len(losses) - 1) / CURVE_WIDTH)] for i in range(CURVE_WIDTH + 1)]
    shown = losses if len(losses) <= CURVE_WIDTH else kept
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return f"{losses[0]:.4f} {''.join(BARS[round((loss - low) * scale)] for loss in shown)} {losses[-1]:.4f}"


def duration(seconds: float) -> str:
    """Two units are enough: 3 d 4 h, 2 h 5 min, 40 s."""
    whole = int(seconds)
    for unit, larger, smaller, name in (("d", 86400, 3600, "h"), ("h", 3600, 60, "min"), ("min", 60, 1, "s")):
        if whole >= larger:
            return f"{whole // larger} {unit} {whole % larger // smaller} {name}"
    return f"{max(whole, 0)} s"


def _model(options: dict[str, Any]) -> str:
    name = options.get("model_name_or_path") or f"ESM-2 {options.get('model_size')}, from scratch"
    if "tuning" in options:
        return f"{name}; tuning {options['tuning']}, {options['global_batch_size']} proteins a step"
    if "global_batch_tokens" in options:
        name += (
            f"; {options['global_batch_tokens']:,} tokens a step, {options['tokens_per_device']:,} a device"
        )
    return name


def _place(session: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in session.get("versions", {}).items())
    compiled = ", compiled" if session.get("torch_compile") else ""
    return (
        f"{session.get('nodes', 1)} node(s), {session.get('processes', 1)} process(es), "
        f"{session.get('device', '?')}, {session.get('precision', '?')}{compiled}; {versions}"
    )


def _time(figures: dict[str, Any]) -> str:
    seconds = figures["seconds"]
    useful = (seconds["running"] - seconds["lost"]) / max(seconds["in_all"], 1e-9)
    return (
        f"{duration(seconds['in_all'])} from {figures['first_started']} to {figures['ended']}; "
        f"{useful:.1%} of it work that counts"
    )


def _cost(figures: dict[str, Any]) -> str:
    text = f"{figures['node_hours']:.2f} node-hours"
    if figures["cost_dollars"] is None:
        return text
    return text + f" at {figures['dollars_per_node_hour']:g} dollars = {figures['cost_dollars']:,.2f} dollars"


def _end(session: dict[str, Any], output_dir: Path) -> str:
    """When a start ended; of one that has not said so, its last sign of life."""
    return session.get("ended") or (read_heartbeat(output_dir) or (0, now()))[1]


def _length(session: dict[str, Any], output_dir: Path) -> float:
    return max(0.0, _seconds(session["started"], _end(session, output_dir)))


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)) / timedelta(seconds=1)


if __name__ == "__main__":
    run_script(main)
