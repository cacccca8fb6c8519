"""What the pages say exists, does. tests/test_walk.py runs their commands."""

import re
import subprocess
import sys

import pytest
from helpers import pages
from helpers.commands import ROOT, run
from helpers.misuse import own_process
from helpers.steps import here

TEXTS = {page: page.read_text(encoding="utf-8") for page in pages.PAGES}
OURS = "".join(text for page, text in TEXTS.items() if page != pages.CLUSTER)  # tests/cluster has that page's
SCRIPTS = (
    "0.download_data.py 1.tokenize_uniref_csv.py finetune_localization.py perplexity.py embed.py "
    "score_variants.py fill_masks.py"
).split()
# Slurm's, torchrun's, tensorboard's.
OTHERS = set(
    "--nodes --time --me --noheader --format --long --list-reasons --nproc_per_node --logdir".split()
)


def test_the_front_page_is_read_in_one_sitting():
    assert len(TEXTS[pages.README].split()) <= 1800


@pytest.mark.parametrize(
    "page", [*pages.PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(target), link


def test_every_page_is_linked_from_the_front_page():
    assert [page.name for page in pages.DOCS if f"docs/{page.name}" not in TEXTS[pages.README]] == []


def test_files_named_are_there():
    listing = (ROOT / "docs" / "files.md").read_text().split("```")[1]
    names = [line.split()[0] for line in listing.strip().splitlines()]
    names += [
        w for c in pages.all_commands() for w in c.split() if re.search(r"^[\w./]+\.(py|sh|md|yaml)$", w)
    ]
    names += re.findall(r"presets/\w+\.yaml", OURS)
    assert len(names) > 60
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_command_is_walked_or_on_the_short_list():
    """The walk runs what is neither on the list nor for AWS, which tests/cluster/test_moto.py runs."""
    commands = pages.all_commands()
    assert len(commands) > 60
    assert [command for command in pages.NOT_WALKED if command not in commands] == []
    assert len(pages.NOT_WALKED) < 10
    syntax = subprocess.run(["bash", "-n"], input="\n".join(c for c in commands if "<" not in c), text=True)
    assert syntax.returncode == 0


def test_flags_named_are_flags():
    modules = ((sys.executable, "-m", f"esm2_hyperpod.{name}") for name in ("planner", "runs.status"))
    helps = "".join(run(*command, "--help").stdout for command in [("bash", "quickstart.sh"), *modules])
    with own_process():
        helps += "".join(here(script, "--help").stdout for script in SCRIPTS)
        helps += here("train.py", "--help_all").stdout
    helps += TEXTS[pages.CLUSTER]  # its table of commands is compared with their help
    flags = set(re.findall(r"--[a-z][a-z_0-9-]+", OURS)) - OTHERS
    assert len(flags) > 50
    assert [flag for flag in sorted(flags) if flag not in helps] == []


def test_output_is_compared_by_pattern():
    said = ["step 20/200  loss 2.95 ...", "...", "/home/you/x: 12,000 records, 1.8 s"]
    printed = "noise\nstep 2/8   loss 3.1  lr 1e-3\nmore\n/tmp/x: 300 records, 0.1 s (synthetic)\n"
    names = {"/home/you": "/tmp"}
    assert pages.missing(said, printed, names) == []
    assert pages.missing(said[::-1], printed, names) == [said[0]]  # in their order
    assert pages.missing(["step 20/200  perplexity"], printed, names) == ["step 20/200  perplexity"]
