"""What the pictures show, and that no run is too short, too long or too odd for one."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esm2_hyperpod import figures
from esm2_hyperpod.inference import heat_map
from esm2_hyperpod.localization import attribution_files, pictures
from esm2_hyperpod.localization.attribution import Attribution
from esm2_hyperpod.runs import curve

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # matplotlib's of what does not fit


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    seen = []

    def save(figure, path):
        seen.append(figure)
        figures.save_figure(figure, path)

    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 40)  # as much is drawn, faster
    for module in (curve, pictures, attribution_files, heat_map):
        monkeypatch.setattr(module, "save_figure", save)
    return seen


def write_run(folder: Path, lines: list[dict], **run) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"options": {}, "sessions": [{"from_step": 0}], **run}))
    return folder


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_curve_of_a_long_run_with_restarts_a_gap_and_a_spike(tmp_path, drawn):
    lines = []
    for step in range(1, 1001):
        loss = {500: 1e6, 700: None}.get(step, 3 - step / 2000)
        figures_of_step = {"learning_rate": 1e-3 / step, "residues_per_second": 1e6, "mfu": 0.4}
        lines.append({"step": step, "loss": loss, **figures_of_step})
    lines.append({"step": 1000, "eval_loss": 2.6})
    write_run(
        tmp_path,
        lines,
        options={"model_size": "650M", "global_batch_tokens": 2_097_152},
        sessions=[{"from_step": 0}, {"from_step": 300}, {"from_step": 300, "processes": 8, "device": "GPU"}],
    )
    curve.plot_training_curve(tmp_path, 2.89)
    assert Image.open(tmp_path / "training_curve.png").width == 280
    loss, _, speed = drawn[0].axes
    assert drawn[0].get_suptitle() == "ESM-2 650M, 8 x GPU"
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        "training",
        "validation",
        "resumed",
    ]
    assert "guessing by residue frequency" in texts(loss) and "highest: 1e+06" in texts(loss)
    assert "median 1,000,000, MFU 40%" in texts(speed)
    assert loss.get_ylim()[1] < 4 and loss.child_axes[0].get_xlabel() == "tokens"
    shown = next(line for line in loss.lines if line.get_label() == "training").get_ydata()
    assert np.nanmax(shown) < 3.1 and np.isnan(shown).sum() == 1


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1, "loss": 3.5, "learning_rate": 1e-4, "residues_per_second": 9.0}],
        [{"step": step, "loss": 1e12, "learning_rate": 1e12, "residues_per_second": 1e18} for step in (1, 2)],
        [{"step": 1, "loss": None, "learning_rate": None, "residues_per_second": None}],
    ],
    ids=["no log", "one log", "huge", "no number"],
)
def test_the_curve_of_an_odd_run(lines, tmp_path, drawn):
    write_run(tmp_path, lines)
    curve.plot_training_curve(tmp_path, None)
    low, high = drawn[0].axes[0].get_ylim()
    assert math.isfinite(low) and low < high < math.inf
    assert drawn[0].axes[0].get_xlim()[0] == 0


def test_the_confusion_matrix_has_shares_and_counts_with_the_largest_class_first(tmp_path, drawn):
    pictures.draw_confusion_matrix(tmp_path / "a.png", np.array([[3, 1], [0, 12_000]]), ["few", "many"], "t")
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["many (12,000)", "few (4)"]
    assert texts(axes) == ["100%", "12,000", "25%", "1", "75%", "3"]


def test_twenty_classes_with_long_names_one_of_them_empty(tmp_path, drawn):
    confusion = np.diag(np.arange(20)) + 1
    confusion[19] = 0
    names = [f"a compartment with a long name, number {number}" for number in range(20)]
    pictures.draw_confusion_matrix(tmp_path / "a.png", confusion, names, "a title " * 40)
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert labels[0] == "a compartmen…, number 18 (38)" and labels[-1].endswith("19 (0)")
    assert "\n" in drawn[0].get_suptitle()


def test_reliability_has_intervals_by_the_number_of_predictions(tmp_path, drawn):
    bins = {"uncalibrated": [(1, 1.0, 1.0)], "calibrated": [(100, 0.55, 0.5), (10, 0.95, 1.0)]}
    pictures.draw_reliability(tmp_path / "a.png", bins, "110 proteins")
    first, second = drawn[0].axes[:2]
    assert [axes.get_title(loc="left") for axes in (first, second)] == [
        "uncalibrated (ECE 0.000)",
        "calibrated (ECE 0.050)",
    ]
    ends = [segment[:, 1] for segment in second.containers[0].lines[2][0].get_segments()]
    assert ends[0] == pytest.approx([0.4038, 0.5962], abs=1e-3)  # Wilson's interval of 50 in 100
    assert ends[1] == pytest.approx([0.7225, 1.0], abs=1e-3)  # and of 10 in 10


def test_regions_of_an_attribution_lie_where_its_mean_is_large_and_not_across_a_crop(tmp_path, drawn):
    position = np.r_[1:41, 101:141]
    value = np.zeros(80)
    value[9:20] = 1.0  # positions 10 to 20
    value[40:51] = -1.0  # 101 to 111, against the label
    assert attribution_files.regions(position, value) == [(10, 20), (101, 111)]
    assert attribution_files.regions(position, np.zeros(80)) == []
    found = [
        Attribution(f"protein {'x' * n}", "Nucleus", 0.9, position, "A" * 80, value, 0.0) for n in (1, 99)
    ]
    attribution_files.write_attributions(tmp_path / "a.csv", found)
    assert texts(drawn[0].axes[0]) == ["10–20", "101–111", "not read"]
    assert len(drawn[0].axes[1].get_title(loc="left")) < 60


def test_a_heat_map_of_several_lines_ends_its_colours_before_the_outliers(tmp_path, drawn):
    with open(tmp_path / "v.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "mutant", "masked_marginals"])
        rows.writerows(["p", f"A{at}{to}", -1.0] for at in range(1, 131) for to in "CDEFG")
        rows.writerow(["p", "A130W", -1e9])
    assert heat_map.draw_heat_map(tmp_path / "v.csv", "masked_marginals", tmp_path / "v.png", None) == 1
    panels = drawn[0].axes[:3]
    assert [axes.get_xlim() for axes in panels] == [(0.5, 60.5), (60.5, 120.5), (120.5, 180.5)]
    assert [axes.get_title(loc="left") for axes in panels] == ["p", "", ""]
    assert panels[0].images[0].get_clim() == (-1, 1)
    letters = panels[2].child_axes[0].get_xticklabels()
    assert [letter.get_text() for letter in letters] == ["A"] * 10
