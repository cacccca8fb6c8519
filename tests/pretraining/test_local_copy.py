"""The dataset's copy on a node's disk: whole and checked, or not used. In test_layouts.py two share it."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.pretraining import local_copy as module
from esm2_hyperpod.pretraining.local_copy import local_copy


@pytest.fixture
def source(tokenized, tmp_path):
    """A dataset of the test's own, and its manifest."""
    folder = tmp_path / "arrow"
    shutil.copytree(tokenized, folder)
    return folder, json.loads((folder / "manifest.json").read_text())


@pytest.fixture
def disk(tmp_path):
    """An empty folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def test_a_copy_is_made_once_and_again_when_it_is_damaged(source, disk):
    dataset, manifest = source
    (dataset / "train" / ".half.tmp").touch()
    copy, line = local_copy(dataset, manifest, str(disk))
    assert f"reading from {copy}, a copy of {dataset}" in line and disk in copy.parents
    for split in ("train", "validation"):
        names = {path.name for path in (dataset / split).glob("[!.]*")}
        assert {path.name for path in (copy / split).iterdir()} == names
        for name in names:
            assert (copy / split / name).read_bytes() == (dataset / split / name).read_bytes()
    shard = next((copy / "train").glob("*.arrow"))
    content, made = shard.read_bytes(), copy.stat().st_ino
    assert local_copy(dataset, manifest, str(disk))[0] == copy and copy.stat().st_ino == made
    shard.write_bytes(content[:1000])
    local_copy(dataset, manifest, str(disk))
    assert shard.read_bytes() == content
    assert not list(copy.parent.glob("*.tmp"))


def test_what_does_not_fit_or_cannot_be_written_is_read_where_it_is(source, disk, monkeypatch):
    dataset, manifest = source
    (disk / f"esm2-{os.getuid()}").touch()  # no folder can be made there, not even by root
    found, line = local_copy(dataset, manifest, str(disk))
    assert found == dataset and line.endswith(f"; reading from {dataset}") and "no copy on" in line
    found, line = local_copy(dataset, manifest, str(disk / "nowhere"))
    assert found == dataset and "No such file" in line
    (disk / f"esm2-{os.getuid()}").unlink()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    found, line = local_copy(dataset, manifest, str(disk))
    assert found == dataset and "do not fit there (1 KB free); reading from" in line
    assert not list(disk.rglob("*.arrow"))


def test_auto_takes_a_mounted_disk_that_is_not_the_datasets_own(source, disk, monkeypatch):
    dataset, manifest = source
    assert local_copy(dataset, manifest, "none") == (dataset, None)
    monkeypatch.setattr(module, "NVME", disk)
    assert local_copy(dataset, manifest, "auto") == (dataset, None)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == disk)
    assert local_copy(dataset, manifest, "auto") == (dataset, None)  # the same file system
    monkeypatch.setattr(module, "_on_one_file_system", lambda *_: False)
    assert disk in local_copy(dataset, manifest, "auto")[0].parents


def test_a_changed_file_is_refused(source, disk):
    dataset, manifest = source
    shard = next((dataset / "train").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard}: not the file that step 1 wrote"):
        local_copy(dataset, manifest, str(disk))
    assert not list(disk.rglob("*.arrow"))
