"""One run of Weights & Biases or MLflow for one of ours; real ones, where they are installed."""

import json

import pytest
from helpers.pretraining import train

from esm2_hyperpod.runs.record import tracker_ids


def interrupted(dataset, output, tracker, **environment) -> str:
    """The id of a run that was stopped after its first step and resumed with another flag."""
    flags = "--report_to", tracker, "--eval_steps", "3"
    stopped = train(dataset, output, *flags, "--max_minutes", "0.0001", check=False, **environment)
    assert stopped.returncode == 75, stopped.stderr
    log = train(dataset, output, *flags, "--max_minutes", "60", **environment)
    assert "resuming from" in log.stdout and "Traceback" not in log.stderr and "ERROR" not in log.stderr
    first, second = json.loads((output / "run.json").read_text())["sessions"]
    assert first["trackers"] == second["trackers"]
    return second["trackers"][tracker]


def test_wandb_has_one_run(tokenized, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    run_id = interrupted(tokenized, tmp_path, "wandb", WANDB_MODE="offline")
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(f"-{run_id}") for folder in folders)
    assert all(list(folder.glob("*.wandb")) for folder in folders)


def test_mlflow_has_one_run(tokenized, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = {"MLFLOW_TRACKING_URI": f"file:{tmp_path}/store", "MLFLOW_EXPERIMENT_NAME": "esm2"}
    run_id = interrupted(tokenized, tmp_path / "run", "mlflow", **store)
    client = mlflow.MlflowClient(store["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("esm2").experiment_id])
    assert run.info.run_id == run_id and run.info.status == "FINISHED" and run.info.run_name == "run"
    assert not client.search_runs(["0"])
    losses = {metric.step for metric in client.get_metric_history(run_id, "eval_loss")}
    assert losses == {3, 6, 8} and run.data.params["model_size"] == "tiny"
    assert {metric.step for metric in client.get_metric_history(run_id, "loss")} == {1, 2, 4, 6, 8}


def test_a_start_without_trackers_forgets_no_run(tmp_path):
    starts = [{"trackers": {"wandb": "a", "mlflow": "b"}}, {}, {"trackers": {"wandb": "a"}}]
    (tmp_path / "run.json").write_text(json.dumps({"sessions": starts}))
    assert tracker_ids(tmp_path) == {"wandb": "a", "mlflow": "b"}
    assert tracker_ids(tmp_path / "none") == {}
