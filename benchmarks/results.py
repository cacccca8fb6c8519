"""The JSON files that the parts of `on_gpu.sh` leave, and the table and the chart made of them.

python benchmarks/results.py benchmarks/out      prints Markdown, writes benchmarks/out/throughput.png
"""

import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from esm2_hyperpod.artifacts import package_versions, write_json_atomically  # noqa: E402
from esm2_hyperpod.figures import new_figure, save_figure  # noqa: E402


def record(path: Path, facts: dict, rows: dict[str, dict]) -> None:
    """Write what is measured so far; a part that is cut off leaves what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    versions = package_versions("torch", "transformers", "accelerate")
    write_json_atomically(path, {**facts, **made, **versions, "rows": rows})


def main() -> None:
    folder = Path(sys.argv[1])
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not parts:
        sys.exit(f"{folder}: nothing measured there; measure with: bash benchmarks/on_gpu.sh")
    for name, part in parts.items():
        rows = part.pop("rows")
        print(f"\n### {name}\n\n{', '.join(f'{key} {value}' for key, value in part.items())}\n")
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for row_name, row in rows.items():
            print(f"| {row_name} | {' | '.join(shown(row.get(column, '')) for column in columns)} |")
        part["rows"] = rows
    draw({name: part for name, part in parts.items() if part["task"] == "training"}, folder)


def shown(value: object) -> str:
    """A figure for people."""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def draw(parts: dict[str, dict], folder: Path) -> None:
    """Residues a second of each way to train, a panel a model size."""
    if not parts:
        return
    figure, panels = new_figure(4.5 * len(parts), 3, columns=len(parts))
    for panel, part in zip(panels, parts.values()):
        rates = {
            name: row["residues_per_second"] for name, row in part["rows"].items() if "failed" not in row
        }
        panel.barh(list(rates), list(rates.values()))
        panel.invert_yaxis()
        panel.set_title(f"{part['model_size']} on {part['processes']} x {part['device']}")
        panel.set_xlabel("real residues a second")
    save_figure(figure, folder / "throughput.png")
    print(f"\n![{', '.join(part['model_size'] for part in parts.values())}](throughput.png)")


if __name__ == "__main__":
    main()
