"""A HyperPod cluster made of stubs, for tests of the wrappers: what each node would have been given.

`srun` notes its options and runs the step's command once for each node, with the variables that Slurm
sets; `scontrol` answers from a list of nodes; the Python of the virtual environment notes its arguments
and environment instead of training.
"""

import os
import shutil
import subprocess
from pathlib import Path

from helpers.commands import ROOT

SRUN = """#!/usr/bin/env bash
if [ "$1" = --help ]; then cat "$STUB/srun_help"; exit; fi
if [ "${!#}" = true ]; then exit "$(cat "$STUB/lost_node" 2>/dev/null || echo 0)"; fi
while [[ $1 == --* ]]; do echo "$1" >>"$STUB/srun_options"; shift; done
echo >>"$STUB/steps"
step="$(wc -l <"$STUB/steps")"
if [ -x "$STUB/during_step" ]; then "$STUB/during_step" "$step"; fi
id=0
for node in $(cat "$STUB/nodes"); do
  SLURM_NODEID=$id SLURM_STEP_ID=0 SLURMD_NODENAME=$node SLURM_STEP_NUM_NODES=$(wc -l <"$STUB/nodes") "$@"
  id=$((id + 1))
done
exit "$(sed -n "${step}p" "$STUB/exit_codes" 2>/dev/null || echo 0)"
"""

SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
  "show job") printf '   ReqNodeList=(null) ExcNodeList=(null)\\n   NodeList=packed\\n   BatchHost=gone\\n'
    echo "   Command=$(cat "$STUB/submitted")" ;;
  "show hostnames") cat "$STUB/nodes" ;;
  "show node")
    if [ "$3" = --oneliner ]; then
      while read -r node; do
        line="$(grep -s "^$node " "$STUB/verdicts" || echo "$node IDLE none")"
        read -r name state reason <<<"$line"
        echo "NodeName=$name Arch=x86_64 State=$state Reason=$reason [root@2026-01-02T03:04:05]"
      done <"$STUB/nodes"
      exit
    fi
    echo "NodeName=$3 Arch=x86_64"
    echo "   Gres=$(cat "$STUB/gres" 2>/dev/null || echo '(null)')"
    echo "   NodeAddr=10.1.0.${3#ip-} NodeHostName=$3 Port=0" ;;
  "requeue "*) echo "$2" >>"$STUB/requeued" ;;
esac
"""

PYTHON = """#!/usr/bin/env bash
case "${2:-}" in *device_count*) echo "${TORCH_GPUS:-0}"; exit ;; esac
printf '%s\\0' "$@" >"$STUB/arguments.${SLURMD_NODENAME:-here}"
env -0 >"$STUB/environment.${SLURMD_NODENAME:-here}"
echo 12345
"""


class StubCluster:
    """A copy of the wrappers in a folder with a space in its name, and the stubs around it."""

    def __init__(self, folder: Path):
        self.stub, self.repository, self.output = (
            folder / "stub",
            folder / "my repository",
            folder / "fsx/out",
        )
        for name in ("2.train_ddp.sh", "3.train_fsdp.sh", "4.finetune_qlora.sh"):
            self.repository.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, self.repository)
        shutil.copytree(ROOT / "cluster_setup", self.repository / "cluster_setup")
        (self.stub / "hyperpod").mkdir(parents=True)
        (self.stub / "infiniband").mkdir()
        self.executable("bin/srun", SRUN)
        self.executable("bin/scontrol", SCONTROL)
        self.executable("venv/bin/python", PYTHON)
        self.write("srun_help", "  --auto-resume=[0|1]\n")
        self.write("instance_type", "")
        self.write("routes", "Iface Destination Gateway\ndocker0 000011AC 0\nens5 00000000 0100010A\n")
        self.nodes("ip-7", "ip-4")

    def write(self, name: str, text: str) -> None:
        path = self.stub / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def executable(self, name: str, text: str) -> None:
        self.write(name, text)
        (self.stub / name).chmod(0o755)

    def nodes(self, *names: str) -> None:
        self.write("nodes", "".join(f"{name}\n" for name in names))

    def instance(self, kind: str, gpus: int, efa: int) -> None:
        """Make all nodes of an instance type; an RDMA card of another vendor is always there."""
        self.write("instance_type", f"{kind}\n")
        lines = "\n".join(f"GPU {i}: NVIDIA (UUID: GPU-{i})" for i in range(gpus))
        self.executable("bin/nvidia-smi", f"#!/usr/bin/env bash\ncat <<'END'\n{lines}\nEND\n")
        for i in range(gpus):
            self.write(f"pci/0000:00:1{i}.0/vendor", "0x10de\n")
            self.write(f"pci/0000:00:1{i}.0/class", "0x030200\n")
        self.write("infiniband/mlx5_0/device/vendor", "0x15b3\n")
        for i in range(efa):
            self.write(f"infiniband/rdmap{i}/device/vendor", "0x1d0f\n")

    def environment(self, **variables: str) -> dict[str, str]:
        dropped = ("SLURM", "CUDA_VISIBLE", "OMP_NUM", "FI_", "NCCL_", "GPUS_PER_NODE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return {
            **kept,
            "PATH": f"{self.stub}/bin:{os.environ['PATH']}",
            "STUB": str(self.stub),
            "VENV": f"{self.stub}/venv",
            "FSX_DIR": str(self.output.parent),
            "HYPERPOD_DIR": f"{self.stub}/hyperpod",
            "INFINIBAND_DIR": f"{self.stub}/infiniband",
            "INSTANCE_TYPE_FILE": f"{self.stub}/instance_type",
            "PCI_DEVICES": f"{self.stub}/pci",
            "KFD_NODES": f"{self.stub}/kfd",
            "VERDICT_SECONDS": "0",
            "ROUTES_FILE": f"{self.stub}/routes",
            **variables,
        }

    def sbatch(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        """Run a wrapper as slurmd does: a copy of it in a spool folder, in the folder of submission."""
        spool = self.stub / "spool"
        spool.mkdir(exist_ok=True)
        shutil.copy(self.repository / script, spool / "slurm_script")
        self.write("submitted", f"{self.repository / script}\n")
        slurm = {
            "SLURM_JOB_ID": "4242",
            "SLURM_SUBMIT_DIR": str(self.repository),
            "SLURM_JOB_NUM_NODES": str(len(self.lines("nodes"))),
            "SLURM_JOB_NODELIST": "ip-[1-2]",
            "SLURM_PROCID": "0",
        }
        return subprocess.run(
            ["bash", str(spool / "slurm_script"), *arguments],
            cwd=self.repository,
            env=self.environment(**{**slurm, **variables}),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def amd(self, gpus: int) -> None:
        """What AMD's driver says of a node: its processor and its GPUs. There is none of NVIDIA's."""
        self.executable("bin/nvidia-smi", "#!/usr/bin/env bash\nexit 9\n")
        for number, units in enumerate([0] + [440] * gpus):
            self.write(f"kfd/{number}/properties", f"cpu_cores_count 64\nsimd_count {units}\n")

    def lines(self, name: str) -> list[str]:
        path = self.stub / name
        return path.read_text().splitlines() if path.exists() else []

    def arguments(self, node: str) -> list[str]:
        """What the Python of `node` was started with."""
        return (self.stub / f"arguments.{node}").read_text().split("\0")[:-1]

    def variables(self, node: str) -> dict[str, str]:
        """The environment of the Python of `node`."""
        text = (self.stub / f"environment.{node}").read_text()
        return dict(entry.split("=", 1) for entry in text.split("\0") if entry)


def option(arguments: list[str], name: str) -> str:
    """The value after a flag; the last one counts, as for argparse."""
    return arguments[len(arguments) - arguments[::-1].index(name)]
