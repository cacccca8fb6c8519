"""Checkpoint folders that are whole or recognised as corrupt.

A checkpoint is written in a hidden folder, listed with its file sizes in `complete.json`, and renamed
to `checkpoint-N` when all processes have written their part. A folder whose files do not match its
list is corrupt (a dead file server, a full disk, somebody's edit) and is skipped.
"""

import json
import os
import re
import shutil
from pathlib import Path

from esm2_hyperpod.artifacts import write_json_atomically

COMPLETE = "complete.json"
STAGING = ".unfinished"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which `checkpoint-N` was written."""
    return int(_NAME.fullmatch(checkpoint.name)[1])


def publish(staged: Path, output_dir: Path) -> Path:
    """Give a wholly written checkpoint its name. One process calls this after all have written."""
    for path in staged.rglob("*"):
        if path.is_file():
            path.chmod(staged.stat().st_mode & 0o666)  # the umask's, as in artifacts.whole_folder
            _sync(path)
    write_json_atomically(staged / COMPLETE, {"files": _sizes(staged)})
    checkpoint = output_dir / staged.name
    if checkpoint.exists():  # a corrupt one of the same step
        shutil.rmtree(checkpoint)
    staged.rename(checkpoint)
    _sync(output_dir)
    staged.parent.rmdir()
    return checkpoint


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None if all its files are there in full size."""
    try:
        expected = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {COMPLETE}"
    except (ValueError, KeyError):
        return f"its {COMPLETE} is corrupt"
    sizes = _sizes(checkpoint)
    for name, size in expected.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            return f"{name} has {sizes[name]:,} bytes of {size:,}"
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """All `checkpoint-N` folders, oldest step first, whole or not."""
    found = [path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def newest_whole_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, and a line for each newer one that is skipped."""
    skipped = []
    for checkpoint in reversed(list_checkpoints(output_dir)):
        problem = what_is_wrong(checkpoint)
        if problem is None:
            return checkpoint, skipped
        skipped.append(f"{checkpoint}: skipped, {problem}")
    return None, skipped


def remove_old(output_dir: Path, keep: int | None, best_step: int | None) -> None:
    """Keep the newest `keep` checkpoints and the one of `best_step`; None keeps all."""
    if keep is None:
        return
    for checkpoint in list_checkpoints(output_dir)[:-keep]:
        if step_of(checkpoint) != best_step:
            # The marker goes first: a half-deleted checkpoint must not look whole.
            (checkpoint / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


def remove_newer(output_dir: Path, step: int) -> None:
    """Delete skipped and unfinished checkpoints after `step`, so that step numbers stay in order."""
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)
    for checkpoint in list_checkpoints(output_dir):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files if path.name != COMPLETE}


def _sync(path: Path) -> None:
    """Write a file or folder to the disk: a rename must not survive a crash that its data did not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
