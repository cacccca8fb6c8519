"""When a run saves and stops: requests of any rank, minutes, and the same answer on all ranks."""

import signal
from types import SimpleNamespace

import pytest
from transformers import TrainerControl

from esm2_hyperpod.training import stopping
from esm2_hyperpod.training.stopping import StopRequests, StopWhenStale


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that stands still until a test moves it."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock.seconds)
    return clock


def after_step(requests: StopRequests, main: bool = True) -> TrainerControl:
    return requests.on_step_end(None, SimpleNamespace(is_world_process_zero=main), TrainerControl())


def test_a_save_every_so_many_minutes_is_one_save(tmp_path, clock):
    requests, saved = StopRequests(tmp_path, save_minutes=8.5), []
    for minute in range(1, 30):
        clock.seconds += 60
        if after_step(requests).should_save:
            saved.append(minute)
    assert saved == [9, 18, 27]


def test_the_clock_of_rank_0_decides(tmp_path, clock):
    requests = StopRequests(tmp_path, save_minutes=1)
    clock.seconds += 3600
    assert not after_step(requests, main=False).should_save


def test_requests_stop_all_ranks_after_the_same_step(tmp_path, clock, monkeypatch):
    asked, other = StopRequests(tmp_path), StopRequests(tmp_path)
    monkeypatch.setattr(stopping, "sum_over_ranks", lambda _: [int(asked.reason is not None), 0])
    assert not after_step(asked).should_training_stop and not after_step(other).should_training_stop
    asked._on_signal(signal.SIGTERM, None)
    for requests in (asked, other):
        control = after_step(requests, main=False)
        assert control.should_training_stop and control.should_save and requests.stopped
    assert asked.reason == "SIGTERM" and other.reason is None


def test_minutes_and_a_stop_file_are_requests(tmp_path, clock):
    limited, asked = StopRequests(tmp_path, max_minutes=2), StopRequests(tmp_path)
    clock.seconds += 119
    assert not after_step(limited).should_training_stop
    clock.seconds += 2
    assert after_step(limited).should_training_stop and limited.reason == "--max_minutes"
    (tmp_path / "stop").touch()
    assert after_step(asked).should_training_stop
    assert not (tmp_path / "stop").exists()


def test_patience_is_counted_from_the_best_evaluation_of_the_saved_state():
    callback = StopWhenStale(steps=14)
    stale = [
        callback.on_step_end(None, SimpleNamespace(best_global_step=best, global_step=step), TrainerControl())
        for best, step in ((None, 100), (6, 20), (6, 21))
    ]
    assert [control.should_training_stop for control in stale] == [False, False, True]
