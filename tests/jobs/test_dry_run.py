"""DRY_RUN=1 of the wrappers: what would run, and every mistake that can be seen from outside."""

from pathlib import Path

from helpers.commands import run
from helpers.local_slurm import LocalSlurm

CPU = {"CUDA_VISIBLE_DEVICES": "", "DRY_RUN": "1"}


def dry_run(fsx: Path, wrapper: str, *arguments: object, processes: int = 2):
    places = {"FSX_DIR": str(fsx), "GPUS_PER_NODE": str(processes)}
    return run("bash", wrapper, *arguments, check=False, **places, **CPU)


def problem(result) -> str:
    """The one line that says what is wrong."""
    assert result.returncode == 1, result.stdout
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_plan_of_pretraining(synthetic, tmp_path):
    result = dry_run(
        synthetic, "3.train_fsdp.sh", "--output_dir", tmp_path / "a b", "--max_steps", 30, processes=4
    )
    assert result.returncode == 0, result.stderr
    assert "esm2_hyperpod.jobs.launch accelerate " in result.stdout
    assert rf"--output_dir {tmp_path}/a\ b --max_steps 30" in result.stdout  # can be pasted into a shell
    assert "1 node(s) x 4 = 4" in result.stdout
    assert "2,097,152 tokens = 4 process(es) x 16,384 x 32 accumulated" in result.stdout
    assert "starts from the beginning" in result.stdout
    assert list(tmp_path.iterdir()) == []  # nothing was run


def test_batch_that_does_not_divide(synthetic, tmp_path):
    result = dry_run(synthetic, "2.train_ddp.sh", "--output_dir", tmp_path, processes=3)
    assert "--global_batch_tokens 2,097,152 does not divide over 3" in problem(result)


def test_dataset_that_is_missing(tmp_path):
    assert "processed/arrow: no such folder" in problem(dry_run(tmp_path, "2.train_ddp.sh"))


def test_files_of_finetuning(tmp_path):
    result = dry_run(tmp_path, "4.finetune_qlora.sh", "--train_file", tmp_path / "none.csv")
    assert result.returncode == 1
    assert "none.csv: no such file" in result.stderr
    assert "runs/ddp/final_model: no such folder; make it with: sbatch 2.train_ddp.sh" in result.stderr


def test_on_the_nodes_of_a_slurm_job(synthetic, tmp_path):
    slurm = LocalSlurm(tmp_path, nodes=2)
    try:
        flags = ["--output_dir", str(tmp_path / "out"), "--global_batch_tokens", "98304"]
        words = ["2.train_ddp.sh", "--dataset_dir", str(synthetic / "processed" / "arrow"), *flags]
        job = slurm.sbatch(*words, DRY_RUN="1", GPUS_PER_NODE="3")
        assert slurm.wait(job) == "COMPLETED", slurm.log(job)
        log = slurm.log(job)
    finally:
        slurm.stop()
    assert "--nnodes 2 --node_rank 0 --nproc_per_node 3" in log
    assert "--nnodes 2 --node_rank 1 --nproc_per_node 3" in log
    assert "98,304 tokens = 6 process(es) x 16,384 x 1 accumulated" in log
    assert not (tmp_path / "out").exists()
