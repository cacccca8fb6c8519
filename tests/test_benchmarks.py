"""The benchmarks run: in their smallest size, for what they measure here says nothing."""

import json

from helpers.commands import on_demand, run


def test_throughput_and_its_table(tmp_path):
    small = "--model_size tiny --tokens 512 --steps 1 --rounds 2".split()
    script, path = "benchmarks/training_throughput.py", tmp_path / "throughput.json"
    table = run(script, *small, "--variants", "padded, SDPA", "packed", "--json", path).stdout
    assert "| packed (this project) | " in table
    rows = json.loads(path.read_text())["rows"]
    assert (
        list(rows) == ["padded, SDPA", "packed"]
        and rows["packed"]["padding"] < rows["padded, SDPA"]["padding"]
    )
    assert "### throughput" in run("benchmarks/results.py", tmp_path).stdout
    assert (tmp_path / "throughput.png").is_file()


@on_demand
def test_everything_that_is_measured_on_a_gpu(tmp_path):
    log = run("bash", "benchmarks/on_gpu.sh", OUT=str(tmp_path), CUDA_VISIBLE_DEVICES="", timeout=1800).stdout
    assert "NO" not in log.split()
    parts = {path.stem: json.loads(path.read_text())["rows"] for path in tmp_path.glob("*.json")}
    assert set(parts) == {"correctness", "throughput-tiny", "runs-tiny", "prediction", "embedding", "memory"}
    assert all(rows and not any("failed" in row for row in rows.values()) for rows in parts.values())
    assert all(f"### {name}" in (tmp_path / "results.md").read_text() for name in parts)


def test_an_unknown_part_is_one_line(tmp_path):
    result = run("bash", "benchmarks/on_gpu.sh", "speed", check=False, OUT=str(tmp_path))
    assert result.returncode == 1 and "no part speed; there are: correctness" in result.stderr


def test_the_planner_meets_what_others_published():
    """Of bf16 runs, as far as the table in RESULTS.md says; a change of the model shows here."""
    printed = run("benchmarks/planner_validation.py").stdout
    rows = [line.split("|")[1:5] for line in printed.splitlines() if line.startswith(("| 3B", "| 650M"))]
    assert len(rows) == 8 and all(0.8 < float(row[3]) < 1.25 for row in rows)
    assert "8M, 16 x A100 80 GB: largest micro-batch" in printed  # a row that misses stays
