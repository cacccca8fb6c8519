"""What README.md says exists, does."""

import re
import sys

import pytest
from helpers.commands import ROOT, run
from helpers.inference import script

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S)
            for line in block.splitlines()]  # fmt: skip
SLURMS = "--nodes", "--time", "--nproc_per_node"  # and torchrun's
USES = "embed.py", "score_variants.py", "fill_masks.py"


def test_files_named_are_there():
    listing = README.split("## The files")[1].split("```")[1]
    names = [line.split()[0] for line in listing.strip().splitlines()]
    names += [word for command in COMMANDS for word in command.split() if re.search(r"\.(py|sh|md)$", word)]
    names += re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(names) > 15
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_flags_named_are_flags():
    scripts = "0.download_data.py", "1.tokenize_uniref_csv.py", "train.py", "finetune_localization.py"
    others = ("bash", "quickstart.sh"), (sys.executable, "-m", "esm2_hyperpod.planner")
    helps = "".join(
        run(*command, "--help").stdout for command in [*((script,) for script in scripts), *others]
    )
    helps += "".join(script(name).parser().format_help() for name in USES)
    flags = {flag for flag in re.findall(r"--[a-z][a-z_0-9]+", README) if flag not in SLURMS}
    assert len(flags) > 10
    assert [flag for flag in sorted(flags) if flag not in helps] == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if "sbatch" in c])
def test_sbatch_lines_pass_a_dry_run(command, tokenized, tmp_path):
    """With bash for sbatch, and this machine for the cluster."""
    words = command.replace("sbatch", "bash").split()
    variables = dict(word.split("=", 1) for word in words if re.fullmatch(r"[A-Z_]+=.*", word))
    words = [word for word in words if word.split("=")[0] not in variables and not word.startswith("--nodes")]
    if "TRAIN_FILE" in variables:
        pytest.skip("needs a pretrained model; quickstart.sh runs it")
    variables |= {"DRY_RUN": "1", "FSX_DIR": str(tmp_path), "DATASET_DIR": str(tokenized), "VENV": sys.prefix,
                  "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    assert "train.py" in run(*words, **variables).stdout
