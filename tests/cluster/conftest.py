"""hyperpod.py in the tests' own process: importing boto3 anew takes longer than most commands."""

import os
import runpy
import sys
from types import SimpleNamespace

import boto3
import pytest
from helpers.commands import ROOT


@pytest.fixture
def hyperpod(monkeypatch, capsys, tmp_path):
    """Runs `hyperpod.py WORDS` and checks its exit code; gives what it printed and its error.

    Without a login, unless a test has made one, and with an empty cache.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if os.environ.get("AWS_ACCESS_KEY_ID") != "testing":
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the login of an earlier test
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/dev/null")
    command = str(ROOT / "cluster_setup" / "hyperpod.py")

    def hyperpod(*words, code=0):
        monkeypatch.setattr(sys, "argv", [command, *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(command, run_name="__main__")
        output = capsys.readouterr()
        message = stop.value.code if isinstance(stop.value.code, str) else ""
        assert (1 if message else stop.value.code or 0) == code, output.out + message
        return SimpleNamespace(out=output.out, error=output.err + message)

    return hyperpod
