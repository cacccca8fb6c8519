"""quickstart.sh as a newcomer runs it, with fewer steps."""

import re
from pathlib import Path

import pytest
from helpers.commands import on_demand, run


def quickstart(folder, *flags: str, check: bool = True):
    return run(
        "bash", "quickstart.sh", "--output_dir", folder, *flags, check=check, timeout=1200,
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """The folder and the output of one run."""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, quickstart(folder, "--steps", "4").stdout


def results(log: str) -> str:
    """The table at the end."""
    return log[log.rindex("step  ") :]


def test_everything_runs(made):
    folder, log = made
    for name in (
        "csv/manifest.json", "processed/arrow/manifest.json", "ddp/final_model/config.json",
        "fsdp/final_model/config.json", "localization/adapter/adapter_config.json",
        "ddp/training_curve.png", "fsdp/training_curve.png", "localization/confusion_matrix.png",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    for run_folder in ("ddp", "fsdp", "localization"):
        assert "The data are synthetic" in (folder / run_folder / "run_report.md").read_text(), run_folder
    assert "$ python 0.download_data.py" in log and "FSDP2: " in log and "SYNTHETIC" in log
    table = results(log)
    assert re.search(r"0 download +\d+ +csv/ +12,000 records, [\d,]+ residues", table)
    assert len(re.findall(r"training loss \d\.\d+ -> \d\.\d+; validation perplexity", table)) == 2
    assert re.search(r"test accuracy 0\.\d+, majority class 0\.\d+", table)


@on_demand
def test_a_second_time_does_nothing(made):
    folder, log = made
    again = quickstart(folder, "--steps", "4").stdout
    assert again.count("already") == 5
    figures = re.compile(r"(training loss.*|test accuracy.*)")
    assert figures.findall(again) == figures.findall(results(log))


def test_wrong_options_get_one_line(tmp_path):
    for flags, message in (
        (("--sauce", "x"), "unknown option --sauce"),
        (("--model_size",), "--model_size needs a value"),
        (("--source", "nowhere.fasta"), "nowhere.fasta: no such file"),
    ):
        result = quickstart(tmp_path / "out", *flags, check=False)
        assert result.returncode == 1 and message in result.stderr
    assert not (tmp_path / "out").exists()
