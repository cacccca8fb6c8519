"""Ways to divide a run over processes: other layouts, other optimizers, other precisions; the same losses."""

import json

import pytest
from helpers.commands import on_demand
from helpers.pretraining import assert_close, divide, metrics, train

PACK_IN_FOUR = "--tp_size", "2", "--cp_size", "2"
REPLICAS = "--dp_replicate_size", "2"
HEADS_IN_TWO = "--tp_size", "2"
LAYOUTS = {
    "tensor and context parallel": (4, PACK_IN_FOUR, "over 2 processes, their rows or columns over 2"),
    "replicas of shards": (4, REPLICAS, "over 2 processes, in 2 replicas"),
    "tensor parallel": (2, HEADS_IN_TWO, "over 1 processes, their rows or columns over 2"),
    "context parallel": (2, ("--cp_size", "2"), "over 2 processes; "),
    "all three": (8, (*PACK_IN_FOUR, *REPLICAS), "over 2 processes, their rows or columns over 2 (tensor"),
}


@on_demand
@pytest.mark.parametrize(
    "name, then",
    [
        ("tensor parallel", "context parallel"),
        ("tensor and context parallel", "replicas of shards"),
        ("replicas of shards", "tensor parallel"),
        ("tensor parallel", "all three"),
        ("all three", "tensor and context parallel"),
    ],
)
def test_a_run_moves_from_one_layout_to_another(tokenized, undisturbed, tmp_path, name, then):
    for layout, stop in ((name, ("--stop_after_steps", "4")), (then, ())):
        processes, flags, says = LAYOUTS[layout]
        log = divide(tokenized, tmp_path, *flags, *stop, processes=processes, fsdp=True).stdout
        assert says in log
    assert_close(metrics(tmp_path), metrics(undisturbed))


@on_demand
@pytest.mark.parametrize("fsdp", [False, True])
def test_the_best_is_exported_after_an_interruption(tokenized, tmp_path, fsdp):
    flags = "--eval_steps 1 --final_model best --learning_rate 0.3 --save_total_limit 1".split()
    divide(tokenized, tmp_path / "run", *flags, "--max_minutes", "0.0001", fsdp=fsdp, check=False)
    log = divide(tokenized, tmp_path / "run", *flags, "--stop_after_steps", "5", fsdp=fsdp).stdout
    log += divide(tokenized, tmp_path / "run", *flags, fsdp=fsdp).stdout
    losses = {line[0]: line[4] for line in metrics(tmp_path / "run") if line[4]}
    best = min(losses, key=losses.get)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert best < 8 and run["final_model_step"] == best and len(run["sessions"]) == 3
    assert run["eval_loss"] == pytest.approx(losses[best], abs=1e-6)
    assert log.count("resuming from") == 2
    still = "--model_name_or_path", tmp_path / "run" / "final_model", "--learning_rate", 0, "--max_steps", 1
    train(tokenized, tmp_path / "still", *still)
    assert metrics(tmp_path / "still")[-1][4] == pytest.approx(losses[best], abs=1e-5)


@on_demand
def test_muon_is_the_same_whole_and_sharded(tokenized, undisturbed, tmp_path):
    train(tokenized, tmp_path / "one", "--optim", "muon")
    divide(tokenized, tmp_path / "fsdp", "--optim", "muon", fsdp=True)
    assert_close(metrics(tmp_path / "fsdp"), metrics(tmp_path / "one"))
    assert metrics(tmp_path / "one") != metrics(undisturbed)


@on_demand
def test_muon_under_ddp_and_moved_to_replicas(tokenized, tmp_path):
    train(tokenized, tmp_path / "one", "--optim", "muon")
    divide(tokenized, tmp_path / "ddp", "--optim", "muon")
    divide(tokenized, tmp_path / "moved", "--optim", "muon", "--stop_after_steps", "4", fsdp=True)
    divide(tokenized, tmp_path / "moved", "--optim", "muon", *REPLICAS, processes=4, fsdp=True)
    for name in ("ddp", "moved"):
        assert_close(metrics(tmp_path / name), metrics(tmp_path / "one"))


@on_demand
def test_context_parallel_without_shards_and_compiled(tokenized, undisturbed, tmp_path):
    divide(tokenized, tmp_path / "ddp", "--cp_size", "2")
    assert_close(metrics(tmp_path / "ddp"), metrics(undisturbed))
    flags = *PACK_IN_FOUR, "--torch_compile", "--activation_checkpointing"
    divide(tokenized, tmp_path / "compiled", *flags, processes=4, fsdp=True)
    assert_close(metrics(tmp_path / "compiled"), metrics(undisturbed))


def test_fsdp_starts_from_a_folder_divides_packs_and_reads_a_local_copy(tokenized, undisturbed, tmp_path):
    start = "--model_name_or_path", str(undisturbed / "final_model"), "--local_disk", str(tmp_path)
    still = "--learning_rate", "0", "--max_steps", "1", "--cp_size", "2"
    log = divide(tokenized, tmp_path / "run", *start, *still, fsdp=True).stdout
    assert log.count(f"a copy of {tokenized}") == 1 and len(list(tmp_path.glob("esm2-*/*/train"))) == 1
    *_, loss, _ = metrics(tmp_path / "run")[-1]
    assert loss == pytest.approx(metrics(undisturbed)[-1][-2], abs=1e-5)


def test_bf16_is_near_fp32_and_the_same_under_ddp_and_fsdp(tokenized, undisturbed, tmp_path):
    for name, fsdp in (("ddp", False), ("fsdp", True)):
        divide(tokenized, tmp_path / name, "--precision", "bf16", fsdp=fsdp)
    assert metrics(tmp_path / "ddp") != metrics(undisturbed)
    assert_close(metrics(tmp_path / "ddp"), metrics(undisturbed), 2e-2)
    assert_close(metrics(tmp_path / "ddp"), metrics(tmp_path / "fsdp"), 1e-5)
