"""quickstart.sh as a newcomer runs it, with fewer steps."""

import re

from helpers.commands import run


def quickstart(folder, *flags: str, check: bool = True):
    return run(
        "bash", "quickstart.sh", "--output_dir", folder, *flags, check=check, timeout=1200,
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip


def test_everything_runs_and_a_second_time_does_nothing(tmp_path):
    log = quickstart(tmp_path, "--steps", "4").stdout
    for made in (
        "csv/manifest.json", "processed/arrow/manifest.json", "ddp/final_model/config.json",
        "fsdp/final_model/config.json", "localization/adapter/adapter_config.json",
        "ddp/training_curve.png", "fsdp/training_curve.png", "localization/confusion_matrix.png",
    ):  # fmt: skip
        assert (tmp_path / made).is_file(), made
    for run_folder in ("ddp", "fsdp", "localization"):
        assert "The data are synthetic" in (tmp_path / run_folder / "run_report.md").read_text(), run_folder
    assert "$ python 0.download_data.py" in log and "FSDP2: " in log and "SYNTHETIC" in log
    table = log[log.rindex("step  ") :]
    assert re.search(r"0 download +\d+ +csv/ +12,000 records, [\d,]+ residues", table)
    assert len(re.findall(r"training loss \d\.\d+ -> \d\.\d+; validation perplexity", table)) == 2
    assert re.search(r"test accuracy 0\.\d+, majority class 0\.\d+", table)

    again = quickstart(tmp_path, "--steps", "4").stdout
    assert again.count("already") == 5
    figures = re.compile(r"(training loss.*|test accuracy.*)")
    assert figures.findall(again) == figures.findall(table)


def test_wrong_options_get_one_line(tmp_path):
    for flags, message in (
        (("--sauce", "x"), "unknown option --sauce"),
        (("--model_size",), "--model_size needs a value"),
        (("--source", "nowhere.fasta"), "nowhere.fasta: no such file"),
    ):
        result = quickstart(tmp_path / "out", *flags, check=False)
        assert result.returncode == 1 and message in result.stderr
    assert not (tmp_path / "out").exists()
