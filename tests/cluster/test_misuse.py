"""What a user may get wrong about hyperpod.py: one line each. Mistakes in cluster.yaml: test_plan.py."""

from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.misuse import arguments, table

SHIPPED = (ROOT / "cluster_setup" / "cluster.yaml").read_text()
FILES = {
    "utf16.yaml": "name: esm2\n".encode("utf-16"),
    "tab.yaml": b"name: a\n\tregion: b\n",
    "empty.yaml": b"",
    "windows.yaml": b"\xef\xbb\xbf" + SHIPPED.replace("\n", "\r\n").encode(),
}

ROWS = [
    ("a command that is none", "plam", "command plam: not one of 'plan', 'create', 'status'"),
    ("a stray word", "plan now", "unknown: now (a value follows its flag)"),
    ("misspelt flag", "plan --confg x.yaml", "unknown: --confg x.yaml (did you mean --config?)"),
    ("another command's flag", "plan --yes", "--yes: of another command; python cluster_setup"),
    ("a shortened flag", "create --dry", "unknown: --dry"),
    ("no number of nodes", "scale", "needed: --count; python cluster_setup/hyperpod.py scale --help"),
    ("a word for a number", "scale --count two", "--count two: not a number"),
    ("nodes below 0", "scale --count -1", "workers.count = -1: is not a number of nodes; write 0 or more"),
    ("a group that is none", "scale --count 3 --group gpu",
     "--group gpu: not in cluster.yaml, which has workers"),
    ("wrong path", "plan --config gone.yaml", "gone.yaml: no such file; copy cluster_setup/cluster.yaml"),
    ("a folder", "plan --config .", ".: Is a directory; give a file in it"),
    ("UTF-16", "plan --config utf16.yaml", "utf16.yaml: not UTF-8 text: UTF-16 text; convert it: iconv"),
    ("a tab", "plan --config tab.yaml", "tab.yaml:2:1: not valid YAML: found character"),
    ("no login: status", "status", "no AWS credentials on this machine; log in with `aws configure` or"),
    ("no login: create", "create --yes", "no AWS credentials on this machine; log in with"),
    ("no login: delete", "delete --yes --keep-stack", "no AWS credentials on this machine; log in with"),
    ("no login: connect", "connect --node login", "no AWS credentials on this machine; log in with"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "on_init_complete.sh").write_text("#!/bin/bash\n")
    return tmp_path


@table(ROWS)
def test_misuse(words, message, folder, hyperpod):
    result = hyperpod(*arguments(words, folder), code=1)
    (line,) = result.error.splitlines()
    assert message in line and line.startswith("hyperpod.py: error: ")


def test_all_mistakes_of_a_file_have_a_line_each(folder, hyperpod):
    first, second = hyperpod("plan", "--config", folder / "empty.yaml", code=1).error.splitlines()
    assert "empty.yaml: 1 mistake; nothing was created or changed" in first
    assert "must be a mapping; give it fields: name, region" in second


def test_lines_may_end_as_on_windows(folder, hyperpod):
    assert "2 x ml.g5.24xlarge" in hyperpod("plan", "--config", folder / "windows.yaml").out


def test_without_arguments_it_says_what_it_does(hyperpod):
    lines = hyperpod(code=1).error.splitlines()
    assert "python cluster_setup/hyperpod.py plan  " in lines[2]
    assert lines[-1] == "hyperpod.py: error: arguments are needed; --help lists the flags"
