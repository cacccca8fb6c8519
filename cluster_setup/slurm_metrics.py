#!/usr/bin/env python3
"""What Slurm does, as metrics for Prometheus: nodes and jobs by state, nodes that HyperPod will replace.

    python3 slurm_metrics.py FILE [--every SECONDS]

Writes FILE, which node_exporter reads (its textfile collector); with --every again and again. `slurm_up` is 0
where Slurm did not answer. Runs on the controller with Python alone: no package is installed there yet.
"""

import argparse
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

HELP = {
    "slurm_up": "Whether Slurm answered.",
    "slurm_nodes": "Nodes of a partition in a state.",
    "slurm_node_action": "1 for a node that HyperPod has given up (Action:Replace, Action:Reboot).",
    "slurm_jobs": "Jobs of a user in a state.",
    "slurm_job_nodes": "Nodes that a running job has.",
}
STATES = ("PENDING", "RUNNING")  # 0 where there are none, so that a chart falls to 0 instead of ending


def ask(*command: str) -> list[list[str]]:
    """The fields, separated by |, of each line that a Slurm command prints; the last may hold more."""
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    return [line.strip().split("|", command[-1].count("|")) for line in output.splitlines() if line.strip()]


def sample(metric: str, value: int, /, **labels: str) -> str:
    """One line of Prometheus' text format."""
    escaped = {k: v.replace("\\", r"\\").replace('"', r"\"").replace("\n", " ") for k, v in labels.items()}
    inside = ",".join(f'{key}="{value}"' for key, value in escaped.items())
    return f"{metric}{{{inside}}} {value}" if inside else f"{metric} {value}"


def collect() -> list[str]:
    """The samples of now; raises `OSError` or `subprocess.SubprocessError` where Slurm does not answer."""
    nodes: Counter = Counter()
    actions = {}
    # A node is listed once for each of its partitions. * after a state says that it does not answer.
    for partition, state, node, reason in ask("sinfo", "--noheader", "--Node", "--format=%R|%T|%N|%E"):
        nodes[partition, re.sub(r"\W", "", state)] += 1
        if reason.startswith("Action:"):
            actions[node] = reason.partition(":")[2].split()[0]
    jobs = Counter({(state, ""): 0 for state in STATES})
    lines = []
    for job, state, user, count, name in ask("squeue", "--noheader", "--format=%A|%T|%u|%D|%j"):
        jobs[state, user] += 1
        if state == "RUNNING":
            lines.append(sample("slurm_job_nodes", int(count), jobid=job, name=name, user=user))
    lines += [sample("slurm_nodes", n, partition=p, state=state) for (p, state), n in nodes.items()]
    lines += [sample("slurm_node_action", 1, node=node, action=action) for node, action in actions.items()]
    return [*lines, *(sample("slurm_jobs", n, state=state, user=user) for (state, user), n in jobs.items())]


def text() -> str:
    """The file's content, each metric's samples together, as the format demands."""
    try:
        lines = ["slurm_up 1", *collect()]
    except (OSError, subprocess.SubprocessError):
        lines = ["slurm_up 0"]
    parts = []
    for name, meaning in HELP.items():
        found = sorted(line for line in lines if re.match(rf"{name}[ {{]", line))
        if found:
            parts += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", *found]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("--every", type=float, help="seconds from one file to the next; once without it")
    arguments = parser.parse_args()
    while True:
        temporary = arguments.file.with_name(f".{arguments.file.name}")  # never read half-written
        temporary.write_text(text())
        temporary.replace(arguments.file)
        if arguments.every is None:
            return
        time.sleep(arguments.every)


if __name__ == "__main__":
    main()
