"""Progress of what cannot count itself, and of what can, as a log file has it."""

import threading

import pytest

from esm2_hyperpod import console


@pytest.fixture
def no_silence(monkeypatch):
    """Everything takes long."""
    monkeypatch.setattr(console, "SECONDS_OF_SILENCE", -1)


def test_a_log_has_a_line_while_something_runs_and_one_at_its_end(no_silence, capsys):
    written, asked = [0], threading.Event()

    def size() -> int:
        asked.set()
        return written[0]

    with console.in_progress("writing checkpoint-7", size, total=2_000_000):
        assert asked.wait(60)
        written[0] = 1_000_000
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("writing checkpoint-7:   0%|") and "/2.00M [" in first
    assert last.startswith("writing checkpoint-7:  50%|") and "1.00M/2.00M [" in last


def test_what_ends_soon_and_what_fails_are_silent(capsys):
    threads = threading.active_count()
    with console.in_progress("planning epoch 3"):
        pass
    with pytest.raises(KeyError), console.in_progress("planning epoch 4"):
        raise KeyError
    assert list(console.counted("abc", 3, "reading", " files")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "" and threading.active_count() == threads


def test_items_are_counted_in_their_unit(no_silence, capsys):
    assert list(console.counted(range(1500), 1500, "comparing", " proteins")) == list(range(1500))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("comparing: 100%|") and "1.50k/1.50k [" in line and " proteins/s]" in line


def test_only_the_first_process_of_a_job_shows_progress(no_silence, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with console.in_progress("loading"), console.byte_bar(3, "CSV", silence=-1) as move_bar:
        move_bar(3)
    assert capsys.readouterr().err == ""
