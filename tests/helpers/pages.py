"""The pages a reader follows, taken apart: commands, what they should print, links."""

import re
from dataclasses import dataclass
from pathlib import Path

from helpers.commands import ROOT

README = ROOT / "README.md"
CLUSTER = ROOT / "cluster_setup" / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, CLUSTER]
AWS = re.compile(r"python cluster_setup/hyperpod\.py (.*)")

NOT_WALKED = {
    "python -m pip install -r cluster_setup/requirements.txt": "the tests need no network; run_tests.sh does",
    "code --remote ssh-remote+esm2 /fsx/ubuntu/esm2": "needs VS Code and a node",
    "rsync -av esm2:/fsx/ubuntu/runs/ runs/": "needs a node",
    "ssh -L 6006:localhost:6006 esm2 /fsx/ubuntu/esm2/.venv/bin/tensorboard --logdir /fsx/ubuntu/runs":
        "needs a node",
    "sudo su - ubuntu": "a shell of its own, for a user of the nodes",
    "cd /fsx/ubuntu": "the nodes' disk",
    "git clone <address of this repository> esm2 && cd esm2": "the walk is in a copy",
    "CONTAINER_IMAGE=/fsx/ubuntu/esm2-hyperpod.sqsh python3 cluster_setup/doctor.py": "needs pyxis, an image",
}  # fmt: skip
"""Commands that run nowhere but on the reader's machines, and why."""


@dataclass
class Block:
    """One bash block of a page.

    Attributes:
        door: "laptop" or "cluster" where the block begins so, else "".
        commands: its commands, a continued line as one, without comments.
        expected: the lines of the text block after it.
    """

    door: str
    commands: list[str]
    expected: list[str]


def blocks(page: Path) -> list[Block]:
    """All of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```bash\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", text, re.M | re.S)
    return [Block(door(body), commands(body), said.splitlines()) for body, said in found]


def door(body: str) -> str:
    """Whose block it is."""
    first = re.match(r"# on a (laptop|cluster)\b", body)
    return first[1] if first else ""


def commands(body: str) -> list[str]:
    """The commands of a block."""
    lines = re.sub(r"\\\n\s*", "", body).splitlines()
    return [line for line in (re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines) if line]


def all_commands(of: list[Path] = PAGES) -> list[str]:
    """Of these pages, in their order."""
    return [command for page in of for block in blocks(page) for command in block.commands]


def aws_commands() -> list[str]:
    """What stands after `python cluster_setup/hyperpod.py` on the pages; the cluster's page first."""
    return [found[1] for line in all_commands([CLUSTER, README, *DOCS]) if (found := AWS.fullmatch(line))]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end with, by GitHub's rule."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pattern(line: str, names: dict[str, str]) -> re.Pattern[str]:
    """What a line of expected output matches: any numbers, any spaces, `...` for anything."""
    for shown, real in names.items():
        line = line.replace(shown, real)
    kinds = {
        r"\.\.\.": ".*",
        r"\s+": r"\s+",
        "[▁▂▃▄▅▆▇█]+": "[▁▂▃▄▅▆▇█]+",
        r"\d[\d,.:e+-]*": r"\d[\d,.:e+-]*",
    }
    parts = re.split(f"({'|'.join(kinds)})", line.strip())
    return re.compile("".join(
        next((matches for shown, matches in kinds.items() if re.fullmatch(shown, part)), re.escape(part))
        for part in parts
    ))  # fmt: skip


def missing(expected: list[str], printed: str, names: dict[str, str]) -> list[str]:
    """The expected lines that were not printed, in their order."""
    at, absent = 0, []
    for line in expected:
        if line.strip() in ("", "..."):
            continue
        found = pattern(line, names).search(printed, at)
        if found:
            at = found.end()
        else:
            absent.append(line)
    return absent
