"""Steps in odd surroundings: a bare environment, Ctrl-C, a closed terminal, a clock that jumps."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import ROOT, on_demand
from helpers.misuse import files_in
from helpers.pretraining import SMALL
from helpers.proteins import some_proteins, write_fasta
from helpers.steps import here, load, manifest, step_0

STEP_0, STEP_1 = "0.download_data.py", "1.tokenize_uniref_csv.py"
BARE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}  # no USER, no HOME


def bare(*words: object, **environment: str) -> subprocess.CompletedProcess:
    """A script with next to no environment."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=BARE | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both steps' output in folders with names that are not ASCII, by processes with a bare environment."""
    folder = tmp_path_factory.mktemp("Daten für Ω")
    source = write_fasta(folder / "Eiweiße.fasta", some_proteins(300))
    first = bare(STEP_0, "--source", source, "--output_dir", folder / "csv", "--num_partitions", 2)
    second = bare(STEP_1, "--input_dir", folder / "csv", "--output_dir", folder / "arrow")
    return folder, first, second


def test_no_user_no_home_and_a_locale_of_c(made):
    folder, *results = made
    for result in results:
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert sum(map(len, load(folder / "arrow").values())) == 300
    refused = bare(STEP_0, "--source", folder / "weg.fasta", "--output_dir", folder / "x")
    assert refused.returncode == 1 and "weg.fasta: no such file" in refused.stderr


@on_demand
def test_training_with_no_user_no_home_and_a_locale_of_c(made):
    places = "--dataset_dir", made[0] / "arrow", "--output_dir", made[0] / "run"
    result = bare("train.py", *places, *SMALL, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0 and (made[0] / "run" / "final_model").is_dir(), result.stderr


def heed_signals() -> None:
    """What runs in the background, or under nohup, is started deaf to Ctrl-C or a closed terminal."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def interrupted(number: signal.Signals, marker: Path | str, *words: object) -> subprocess.CompletedProcess:
    """A script and its children as a terminal has them, sent a signal once a file is there, or mapped."""
    command = [sys.executable, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        command, cwd=ROOT, **pipes, start_new_session=True, preexec_fn=heed_signals
    ) as process:
        memory = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None:
            if marker.exists() if isinstance(marker, Path) else marker in memory.read_text():
                break
            time.sleep(0.01)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def told(number: signal.Signals, script: str) -> tuple[int, str]:
    """Exit code and last line: of Ctrl-C a line, of a closed terminal nothing, which nobody would see."""
    if number == signal.SIGINT:
        return 130, f"{script}: interrupted; run the same command again to go on"
    return -number, ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_step_0_interrupted(tmp_path, number):
    words = STEP_0, "--source", "synthetic", "--output_dir", tmp_path
    result = interrupted(number, tmp_path / ".x001.csv.tmp", *words, "--max_records", 9_000_000)
    code, line = told(number, STEP_0)
    assert (result.returncode, "".join(result.stderr.splitlines()[-1:])) == (code, line), result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "manifest.json").exists()
    if number == signal.SIGINT:
        assert files_in(tmp_path) == []
    here(*words, "--max_records", 300, "--num_partitions", 2)
    names = {path.name for path in files_in(tmp_path)}
    assert names == {"manifest.json", "localization.csv", "x000.csv", "x001.csv"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_step_1_interrupted_with_its_workers(tmp_path, number):
    text = "".join(some_proteins(500).values())
    proteins = {f"P{index}": text[index : index + 9000] for index in range(2000)}
    step_0(write_fasta(tmp_path / "a.fasta", proteins, line=9000), tmp_path / "csv", "--num_partitions", 40)
    words = STEP_1, "--input_dir", tmp_path / "csv", "--output_dir", tmp_path / "arrow"
    result = interrupted(number, tmp_path / "arrow" / ".parts" / "00000.json", *words, "--num_proc", 2)
    code, line = told(number, STEP_1)
    assert (result.returncode, "".join(result.stderr.splitlines()[-1:])) == (code, line), result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "arrow" / "manifest.json").exists()
    here(*words)
    assert sum(split["records"] for split in manifest(tmp_path / "arrow")["splits"].values()) == 2000
    assert not list((tmp_path / "arrow").rglob(".*.tmp"))


@on_demand
def test_ctrl_c_while_torch_is_imported_is_no_traceback(tmp_path):
    words = "train.py", "--dataset_dir", "x", "--output_dir", tmp_path
    result = interrupted(signal.SIGINT, "libtorch", *words)
    assert result.returncode in (-signal.SIGINT, 130) and "Traceback" not in result.stderr


def test_a_clock_that_jumps(tmp_path, monkeypatch):
    """NTP may put it back by hours at any moment: what is measured is measured with another clock."""
    jumps = itertools.cycle([0, -7200, 7200])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    step_0("synthetic", tmp_path / "csv", "--max_records", 300, "--num_partitions", 2)
    result = here(STEP_1, "--input_dir", tmp_path / "csv", "--output_dir", tmp_path / "arrow")
    seconds = float(result.stdout.splitlines()[-1].split("; ")[-1].split(" s, ")[0])
    assert 0 <= seconds < 600
