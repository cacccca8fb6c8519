"""The dataset on the node's own disk.

Training reads sequences here and there through a memory map. On a shared file system that has not read them
before, each of these reads waits for the network; one copy from end to end does not.
"""

import fcntl
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from esm2_hyperpod.artifacts import file_digest, folder_size, size_text, whole_folder
from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import UserError, describe_os_error

NVME = Path("/opt/dlami/nvme")
"""Where AWS's machine images, HyperPod's among them, mount a node's NVMe disks."""

SPLITS = ("train", "validation")
SHARE_OF_FREE_SPACE = 0.9


def local_copy(dataset_dir: Path, manifest: dict, disk: str) -> tuple[Path, str | None]:
    """The folder to read the dataset from, and a line about it for people.

    Called by all processes of a node: the first one copies, the others wait for it, and a later run finds the
    copy. It appears under its name when it is whole and its digests are the manifest's. Where it does not
    fit, or cannot be written, the answer is `dataset_dir`.

    Args:
        manifest: step 1's.
        disk: a folder, `auto` for `NVME` where that is mounted, or `none`.

    Raises:
        UserError: a file of `dataset_dir` is not the one that step 1 wrote.
    """
    root = NVME if disk == "auto" else Path(disk)
    if disk == "none" or (disk == "auto" and not os.path.ismount(root)):
        return dataset_dir, None
    files = {
        f"{split}/{file['name']}": file
        for split in SPLITS
        for file in manifest["splits"].get(split, {"files": []})["files"]
    }
    size, start = sum(file["bytes"] for file in files.values()), time.monotonic()
    copy = root / f"esm2-{os.getuid()}" / manifest["content_digest"][:16]
    try:
        if disk == "auto" and _on_one_file_system(root, dataset_dir):
            return dataset_dir, None
        copy.parent.mkdir(exist_ok=True)
        unfinished = copy.with_name(f".{copy.name}.tmp")  # of `whole_folder`, by whichever process copies
        with (
            open(copy.with_name(f".{copy.name}.lock"), "a") as lock,
            in_progress(f"copying the data to {root}", lambda: folder_size(unfinished), size),
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not all(_has_size(copy / name, file["bytes"]) for name, file in files.items()):
                free = shutil.disk_usage(root).free
                if size > SHARE_OF_FREE_SPACE * free:
                    why = f"{size_text(size)} do not fit there ({size_text(free)} free)"
                    return dataset_dir, f"{root}: {why}; reading from {dataset_dir}"
                _copy(dataset_dir, copy, files)
    except OSError as error:
        return dataset_dir, f"no copy on {root}: {describe_os_error(error)}; reading from {dataset_dir}"
    figures = f"{size_text(size)}, ready in {time.monotonic() - start:.0f} s"
    return copy, f"reading from {copy}, a copy of {dataset_dir} ({figures})"


def _copy(dataset_dir: Path, copy: Path, files: dict[str, dict]) -> None:
    with whole_folder(copy) as temporary:
        splits = [dataset_dir / split for split in SPLITS if (dataset_dir / split).is_dir()]
        for split in splits:
            (temporary / split.name).mkdir()

        def copy_one(source: Path) -> None:
            name = str(source.relative_to(dataset_dir))
            shutil.copyfile(source, temporary / name)
            if name in files and file_digest(temporary / name) != files[name]["sha256"]:
                raise UserError(
                    f"{source}: not the file that step 1 wrote (its SHA-256 is not the manifest's); "
                    "make it again with: python 1.tokenize_uniref_csv.py --overwrite"
                )

        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(copy_one, (path for split in splits for path in split.glob("[!.]*"))))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _on_one_file_system(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
