"""python -m esm2_hyperpod.runs.status: what it says of runs in every state."""

import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from helpers.commands import run

from esm2_hyperpod.artifacts import write_json_atomically
from esm2_hyperpod.figures import short
from esm2_hyperpod.runs import record as run_record
from esm2_hyperpod.runs import status as run_status

NODES = {"nodes": 2, "processes": 4}
SESSIONS = [
    {"started": "2030-01-01T09:00:00+00:00", "from_step": 0, "ended": "2030-01-01T10:00:00+00:00",
     "reached_step": 40, **NODES},
    {"started": "2030-01-01T10:07:30+00:00", "from_step": 40, "saved_at": "2030-01-01T10:00:00+00:00",
     "ended": "2030-01-01T10:27:30+00:00", "reached_step": 47, "broken_off": True, **NODES},
    {"started": "2030-01-01T10:37:30+00:00", "from_step": 40, "saved_at": "2030-01-01T10:00:00+00:00",
     "ended": "2030-01-01T10:47:30+00:00", "reached_step": 50, **NODES},
]  # fmt: skip
"""An early stop; a start that broke off after 20 minutes, before its first checkpoint; a last one."""


def status(*folders: Path, check: bool = True):
    """What it says, each row in one line again; none of its lines is longer than 80 columns."""
    result = run(sys.executable, "-m", "esm2_hyperpod.runs.status", *folders, check=check)
    assert max(map(len, result.stdout.splitlines()), default=0) <= 80
    result.stdout = result.stdout.replace("\n" + " " * 14, " ")
    return result


def name_of(output: Path, state: str) -> str:
    """A run's name and state on the first line about it."""
    return f"{short(str(output), 78 - len(state))}: {state}"


@pytest.fixture
def output(tmp_path) -> Path:
    """A run of 100 steps, now at step 40, with one checkpoint."""
    folder = tmp_path / "runs" / "ddp"
    folder.mkdir(parents=True)
    run_record.begin_run(folder, {"max_steps": 100}, {"processes": 2}, 0)
    for step in range(10, 50, 10):
        line = {"step": step, "loss": 3 - step / 100, "residues_per_second": 1000.0 + step, "mfu": 0.4}
        line |= {"padding_share": 0.0, "data_wait_share": 0.0}
        run_record.append_metrics(folder, {**line, "eta_seconds": 3700.0})
    run_record.append_metrics(folder, {"step": 40, "eval_loss": 2.5, "eval_perplexity": 12.1825})
    write_checkpoint(folder, 40)
    return folder


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "complete.json").write_text(json.dumps({"files": {"model.safetensors": 7}}))
    return checkpoint


def test_running(output):
    text = status(output).stdout
    assert text.startswith(name_of(output, "running") + "\n")
    assert "step 40 of 100 (40%), 1 h 1 min to go" in text
    assert "1,025 residues/s, MFU 40.0%" in text
    assert "2.9000 █▆▃▁ 2.6000" in text
    assert "step 40: loss 2.5000, perplexity 12.1825" in text
    assert "from step 0; interruptions: none" in text
    assert "checkpoint  step 40, " in text


def test_interruptions_and_damaged_checkpoint(output):
    run_record.end_run(output, run_record.CONTINUED, steps=40)
    record = json.loads((output / "run.json").read_text())
    record["sessions"] = SESSIONS
    write_json_atomically(output / "run.json", record)
    (write_checkpoint(output, 50) / "model.safetensors").write_bytes(b"torn")
    text = status(output).stdout
    assert text.startswith(name_of(output, "to be continued") + "\n")
    assert "to go" not in text
    assert "from step 0, 40, 40; interruptions: 3 starts: resumed 1 time(s) after an early stop, " in text
    assert "1 time(s) after a failure; 17 min 30 s between; 7 steps (20 min 0 s) done twice" in text
    assert "step 40, " in text and "checkpoint-50: skipped, model.safetensors has 4 bytes of 7" in text


def test_report_in_words_and_figures(output):
    record = json.loads((output / "run.json").read_text())
    write_json_atomically(output / "run.json", {**record, "status": "finished", "sessions": SESSIONS})
    text = run(
        sys.executable, "-m", "esm2_hyperpod.runs.report", output, "--dollars_per_node_hour", "5"
    ).stdout
    assert text == (output / "run_report.md").read_text() + "\n"
    assert "| status | finished, 40 steps |" in text and "2 node(s), 4 process(es)" in text
    assert "1 h 47 min from 2030-01-01T09:00:00+00:00 to 2030-01-01T10:47:30+00:00; 65.1% of it" in text
    assert "| cost | 3.00 node-hours at 5 dollars = 15.00 dollars |" in text
    assert "| training loss | 2.9000 █▆▃▁ 2.6000 |" in text
    figures = json.loads((output / "run_report.json").read_text())
    assert figures["seconds"] == {"in_all": 6450, "running": 5400, "waiting": 1050, "lost": 1200}
    assert figures["failures"] == {
        "starts": 3,
        "stopped_early": 1,
        "broken_off": 1,
        "steps_done_twice": 7,
    }
    assert figures["loss_curve"][0] == [10, 2.9]


def test_an_early_stop_whose_checkpoint_was_damaged_afterwards(output):
    record = json.loads((output / "run.json").read_text())
    stopped, last = SESSIONS[0], {**SESSIONS[2], "from_step": 30, "saved_at": "2030-01-01T09:45:00+00:00"}
    write_json_atomically(output / "run.json", {**record, "sessions": [stopped, last]})
    text = status(output).stdout
    assert "1 time(s) after an early stop, 0 time(s) after a failure" in text
    assert "; 10 steps (15 min 0 s) done twice" in text


def test_silent_run_is_not_called_running(output):
    hours_ago = time.time() - 3 * 3600
    for name in ("run.json", "metrics.jsonl"):
        os.utime(output / name, (hours_ago, hours_ago))
    text = status(output).stdout
    assert text.startswith(name_of(output, "silent for 3 h 0 min") + "\n")
    assert "  problem     waiting in the queue, or dead; run the same command again to resume" in text


def test_all_runs_below_a_folder(output):
    just_begun, damaged = output.parent / "fsdp", output.parent / "localization"
    for folder in (just_begun, damaged):
        folder.mkdir()
    run_record.begin_run(just_begun, {"max_steps": 8}, {}, 0)
    (damaged / "run.json").write_text('{"status": "run')
    text = status(output.parent).stdout
    assert [line for line in text.splitlines() if line and not line.startswith(" ")] == [
        name_of(output, "running"),
        name_of(just_begun, "running"),
        name_of(damaged, "corrupt"),
    ]
    assert (
        "run.json is corrupt (Unterminated string starting at: line 1 column 12 (char 11)); move it" in text
    )
    assert "step 0 of 8 (0%)" in text and "none yet" in text


def test_no_run(tmp_path):
    result = status(tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "no run.json" in result.stderr


def test_a_long_name_is_shortened_and_its_end_is_kept(output):
    (long := output.parent / f"{'very_' * 40}long").mkdir()
    run_record.begin_run(long, {"max_steps": 8}, {}, 0)
    first = run_status.describe(long, datetime.now(timezone.utc)).splitlines()[0]
    assert len(first) == 80 and "…" in first and first.endswith("very_long: running")


def test_colours_on_a_terminal_only(output, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["status", str(output)])
    for terminal, no_color, coloured in ((True, "", True), (True, "1", False), (False, "", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=terminal: answer)
        run_status.main()
        assert ("\033[32mrunning\033[0m" in capsys.readouterr().out) is coloured


def test_watching_shows_it_again_until_ctrl_c(output, monkeypatch, capsys):
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        run_record.append_metrics(output, {"step": 50 + len(slept), "loss": 2.0})
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_status.time, "sleep", sleep)
    monkeypatch.setattr(sys, "argv", ["status", str(output), "--watch"])
    assert run_status.main() is None
    text = capsys.readouterr().out
    assert [f"step {step} of 100" in text for step in (40, 51, 52, 53)] == [True, True, True, False]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("LINES", "5")
    run_status.show("\n".join(map(str, range(9))))
    assert capsys.readouterr().out.splitlines()[-2:] == ["0", "... 8 more lines"]
