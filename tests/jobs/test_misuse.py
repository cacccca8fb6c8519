"""What a user may get wrong about the three wrappers: one line each, and nothing is started."""

import os
import shutil
import subprocess

import pytest
from helpers.commands import ROOT
from helpers.misuse import table
from helpers.stub_cluster import StubCluster, option

WRAPPERS = ["2.train_ddp.sh", "3.train_fsdp.sh", "4.finetune_qlora.sh"]
DDP, FSDP, QLORA = WRAPPERS

ROWS = [  # the words before the wrapper are variables
    ("more processes than GPUs", f"GPUS_PER_NODE=8 {DDP} --max_steps 9", "GPUS_PER_NODE=8, but "),
    ("a word for a number", f"GPUS_PER_NODE=two {FSDP} --max_steps 9",
     "GPUS_PER_NODE=two: must be a number from 1"),
    ("no processes", f"GPUS_PER_NODE=0 {DDP} --max_steps 9", "GPUS_PER_NODE=0: must be a number from 1 up"),
    ("a Python that is not there", f"VENV=/does/not/exist {QLORA} --explain 3",
     "/does/not/exist/bin/python: no such Python; set VENV, or make it with: bash cluster_setup/create_env"),
    ("a GPU that is hidden", f"CUDA_VISIBLE_DEVICES=none {DDP} --max_steps 9",
     "CUDA_VISIBLE_DEVICES=none hides"),
    ("DDP without arguments and data", DDP, "fsx/processed/arrow holds nothing of step 1; make it"),
    ("FSDP without arguments and data", FSDP, "fsx/processed/arrow holds nothing of step 1"),
    ("QLoRA without arguments and data", QLORA, "no labelled proteins: give them with TRAIN_FILE=labelled"),
]  # fmt: skip


@pytest.fixture
def cluster(tmp_path) -> StubCluster:
    cluster = StubCluster(tmp_path)
    cluster.instance("g5.12xlarge", gpus=4, efa=1)
    return cluster


def bash(cluster, words: str, **variables: str) -> subprocess.CompletedProcess:
    """`NAME=VALUE ... WRAPPER ARGUMENTS` on a node of the cluster, outside Slurm."""
    given = words.split()
    wrapper = next(index for index, word in enumerate(given) if word in WRAPPERS)
    variables |= dict(word.split("=", 1) for word in given[:wrapper])
    return subprocess.run(
        ["bash", *given[wrapper:]],
        cwd=cluster.repository,
        env=cluster.environment(**variables),
        capture_output=True,
        text=True,
    )


@table(ROWS)
def test_misuse(words, message, cluster):
    result = bash(cluster, words)
    assert result.returncode == 1 and message in result.stderr
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1 and errors == result.stderr.splitlines()[-1:]
    assert not cluster.lines("arguments.here")
    if words in WRAPPERS:
        assert f"bash {words}" in result.stderr  # and what to do, to be copied


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_help_of_a_wrapper_starts_nothing(cluster, wrapper):
    result = bash(cluster, f"{wrapper} --help")
    assert result.returncode == 0 and f"bash {wrapper}" in result.stderr
    assert not cluster.lines("arguments.here")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_sbatch_may_be_called_in_any_folder(cluster, wrapper, tmp_path):
    result = cluster.sbatch(wrapper, SLURM_SUBMIT_DIR=str(tmp_path))
    assert result.returncode == 0 and cluster.lines("arguments.ip-7"), result.stderr
    cluster.executable("bin/scontrol", "#!/usr/bin/env bash\nexit 1\n")
    lost = cluster.sbatch(wrapper, SLURM_SUBMIT_DIR=str(tmp_path))
    assert lost.returncode == 1
    assert lost.stderr == f"{wrapper}: error: this copy is not in its repository; run the one there\n"


def test_a_relative_folder_is_the_same_one_on_all_nodes(cluster):
    cluster.sbatch(DDP, FSX_DIR="my data")
    for node in ("ip-7", "ip-4"):
        assert (
            option(cluster.arguments(node), "--dataset_dir")
            == f"{cluster.repository}/my data/processed/arrow"
        )


def test_a_user_without_a_name_gets_a_folder_of_their_number(cluster):
    cluster.executable("bin/id", '#!/usr/bin/env bash\n[ "$1" = -u ] && echo 4242 || exit 1\n')
    cluster.sbatch(DDP, USER="", FSX_DIR="")
    assert option(cluster.arguments("ip-7"), "--output_dir") == "/fsx/4242/runs/ddp"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sauce x", "unknown option --sauce; see: bash quickstart.sh --help"),
        ("--source gone.fasta", "gone.fasta: no such file"),
        ("--source README.md", "--source needs --labels FILE too"),
        ("--steps", "--steps needs a value"),
    ],
)
def test_quickstart(words, message, tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    command = ["bash", str(ROOT / "quickstart.sh"), *words.split()]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"quickstart.sh: error: {message}" in result.stderr
