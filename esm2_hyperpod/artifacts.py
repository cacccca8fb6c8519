"""Files that are whole or absent, folders with one writer, and the manifests that join the stages.

A stage writes under temporary names, renames when whole, and writes `manifest.json` last: a folder
without one is unfinished. The manifest records what was asked (`options`), what came out, and the
versions used, so that the next stage and the next run of the same stage can check it.
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esm2_hyperpod.errors import UserError

MANIFEST = "manifest.json"
CLUSTER_OF_ROW = "cluster_of_row.npy"
"""Beside a split made with clusters: int32, the number of each row's cluster (see `tokenization`)."""
READ_BYTES = 1 << 20
WORTH_A_LINE = 1e9  # bytes; nobody asks whether less will fit


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It becomes `path` when the block ends, and is deleted if the block fails.

    A reader, or a crash, sees the old file or the new one, never a part.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_files([temporary])
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty temporary folder to fill. It replaces `folder` when the block ends.

    Its files get the permissions that the umask gives: safetensors makes files that only their owner can
    read, and folders here lie on file systems that people share.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        files = [path for path in temporary.rglob("*") if path.is_file()]
        for path in files:
            path.chmod(temporary.stat().st_mode & 0o666)  # a new folder has the umask's bits
        sync_files(files)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json_atomically(path: Path, content: Any) -> None:
    """`write_text_atomically` of `content` as indented JSON; key order is kept, so output is repeatable."""
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with lines that end in a line feed, whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def file_digest(path: Path) -> str:
    """SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while content := file.read(READ_BYTES):
            digest.update(content)
    return digest.hexdigest()


def content_digest(files: list[dict]) -> str:
    """SHA-256 over the digests of a stage's files, in order: one name for their whole content."""
    return hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest()


def read_manifest(folder: Path, made_by: str, holds: str | None = None) -> dict[str, Any]:
    """The manifest of a finished stage.

    `made_by` is the command that makes or finishes `folder`; it is quoted in the error. `holds` is a field
    that tells this stage's manifest from others'. Raises `UserError` if the folder is missing,
    unfinished, another stage's, or its manifest is not JSON.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        elsewhere = int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) > 1
        shared = f" on {platform.node()} (all nodes must see it, as they do $FSX_DIR)" if elsewhere else ""
        raise UserError(f"{folder}: no such folder{shared}; make it with: {made_by}")
    if not path.is_file() and (folder.parent / MANIFEST).is_file():
        raise UserError(f"{folder}: a part of what is whole in the folder above; give {folder.parent}")
    if not path.is_file():
        raise UserError(f"{folder}: unfinished (it has no {MANIFEST}); finish it with: {made_by}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); delete {folder} and run: {made_by}") from None
    if not isinstance(manifest, dict) or (holds and holds not in manifest):
        step = made_by.split(" --")[0]  # not into this folder
        raise UserError(f"{folder}: holds what another step made; give the folder of: {step}")
    return manifest


def check_same_options(
    folder: Path, recorded: dict[str, Any], asked: dict[str, Any], start_over: str, defaults: dict[str, Any]
) -> None:
    """Refuse, in one line with both values, to mix this run's options with those `folder` was made with.

    An option that is not recorded is younger than the folder, and has the value of `defaults`.
    """
    for name, value in asked.items():
        before = recorded.get(name, defaults.get(name))
        if before != value:
            raise UserError(
                f"{folder}: was made with {name}={before!r}, this run asks for {value!r}; "
                f"use another folder, or start over with: {start_over}"
            )


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions, for a manifest."""
    return {package: version(package) for package in packages}


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` for one writing process; the kernel lets go when that process dies, however it dies.

    Raises `UserError` at once if another process holds it. An `OSError` that names no file, as that of a
    full disk does not, leaves with the name of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is writing there; wait for it to end") from None
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno is not None:
                error.filename = str(folder)
            raise


def check_free_space(folder: Path, needed: float, remedy: str) -> None:
    """Raise `UserError` if `folder` has less room than the bytes that are needed; say it if they are many."""
    free = shutil.disk_usage(folder).free
    amounts = f"needs about {size_text(needed)} and has {size_text(free)} free"
    if needed > free:
        raise UserError(f"{folder}: {amounts}; free some space, choose another --output_dir{remedy}")
    if needed > WORTH_A_LINE:
        print(f"{folder}: {amounts}")


def size_text(size: float) -> str:
    """Bytes for people: `46 bytes`, `1.2 KB`, `75.7 GB`; a KB is 1,000 bytes."""
    if size < 999.5:
        return f"{size:.0f} bytes"
    for unit in ("KB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.4g} TB"


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder that others may be writing; 0 where there is none."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it has just been renamed
            size += path.stat().st_size if path.is_file() else 0
    return size


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until the content of the files is on the disk; many at once, so that they share its commits."""

    def sync(path: Path) -> None:
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(sync, paths))


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files that a killed run left below `folder`; for the one who holds it."""
    for path in folder.rglob(".*.tmp"):
        path.unlink()
