"""What doctor.py needs to know about one node, printed as one line of JSON. Uses only the standard library.

python cluster_setup/node_probe.py SHARED_FOLDER
"""

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
AMAZON = "0x1d0f"
"""PCI vendor of EFA devices."""


def main() -> None:
    """Print the facts, and write a file named after this node into the shared folder."""
    node = os.environ.get("SLURMD_NODENAME", platform.node())
    print(json.dumps({"node": node, "time": time.time(), **facts(Path(sys.argv[1]), node)}), flush=True)


def facts(shared: Path, node: str) -> dict:
    """Everything but name and time."""
    return {
        "python": platform.python_version(),
        "packages": installed_packages(),
        "write_error": write_error(shared / f".doctor.{node}"),
        "free_gb": free_gb(shared),
        "gpus": gpus(),
        "gpu_fault": shell_fact("gpu_fault"),
        "efa": efa_devices(),
        "instance_type": shell_fact("instance_type"),
        "root": root_folder(),
    }


def installed_packages() -> dict[str, str | None]:
    """Installed versions of the packages in requirements.txt; None for a missing one."""
    names = re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    versions: dict[str, str | None] = dict.fromkeys(names)
    for name in versions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write_error(path: Path) -> str | None:
    """Why the shared folder cannot be written from here, or None."""
    try:
        path.write_text(path.name)
    except OSError as error:
        return error.strerror
    return None


def free_gb(folder: Path) -> float | None:
    """Free space in GB, or None if there is no such folder here."""
    return shutil.disk_usage(folder).free / 1e9 if folder.is_dir() else None


def gpus() -> list[str]:
    """Name and driver version of each GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=60)
    return (
        result.stdout.splitlines()
        if result.returncode == 0
        else [f"nvidia-smi fails: {result.stdout.strip()}"]
    )


def efa_devices() -> int:
    """Elastic Fabric Adapters of this node."""
    vendors = Path(os.environ.get("INFINIBAND_DIR", "/sys/class/infiniband")).glob("*/device/vendor")
    return sum(vendor.read_text().strip() == AMAZON for vendor in vendors)


def shell_fact(function: str) -> str:
    """What a function of node_facts.sh prints."""
    script = f"source {shlex.quote(str(ROOT / 'cluster_setup' / 'node_facts.sh'))}; {function}"
    return subprocess.run(
        ["/bin/bash", "-c", script], capture_output=True, text=True, timeout=60
    ).stdout.strip()


def root_folder() -> str:
    """What tells the root folder of a container from that of its node."""
    root = Path("/").stat()
    return f"{root.st_dev}:{root.st_ino}"


if __name__ == "__main__":
    main()
