"""Shells and commands on the nodes, by way of AWS Systems Manager: no SSH key, no open port."""

import datetime
import json
import re
import shutil
import subprocess
from typing import Any

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.cluster import cluster_id
from esm2_hyperpod.errors import UserError

_INSTALL = {
    "aws": "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html",
    "session-manager-plugin": (
        "https://docs.aws.amazon.com/systems-manager/latest/userguide/"
        "session-manager-working-with-install-plugin.html"
    ),
}
ANSWER_SECONDS = 30
# A login shell, because HyperPod's Slurm is not on the PATH of a bare one.
_ASK_SLURM = "bash -lc 'date +%Y-%m-%dT%H:%M:%S; scontrol show node --oneliner'"


def choose_node(nodes: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    """A running node: of the id or group `wanted`, else a login node, else the controller."""
    running = [node for node in nodes if node["InstanceStatus"]["Status"] == "Running"]
    for choice in [wanted] if wanted else ["login", "controller"]:
        for node in running:
            if choice in (node["InstanceId"], node["InstanceGroupName"]):
                return node
    there = ", ".join(f"{node['InstanceGroupName']} {node['InstanceId']}" for node in running) or "none"
    raise UserError(f"no running node {wanted or 'login or controller'}; running nodes: {there}")


def session_target(cluster: dict[str, Any], node: dict[str, Any]) -> str:
    """What Session Manager calls a node of a HyperPod cluster."""
    return f"sagemaker-cluster:{cluster_id(cluster)}_{node['InstanceGroupName']}-{node['InstanceId']}"


def session_command(aws: Aws, target: str, *more: str) -> list[str]:
    """The AWS CLI's command for a session with `target`."""
    return ["aws", "ssm", "start-session", "--region", aws.region, "--target", target, *more]


def missing_tool() -> str | None:
    """Which of the two tools for sessions is not installed, and where to get it; None if both are."""
    for tool, address in _INSTALL.items():
        if shutil.which(tool) is None:
            return f"{tool} is not installed; get it from {address}"
    return None


def run_on_node(aws: Aws, target: str, shell_command: str) -> str:
    """What a command prints on a node, as root's session sees it, or why it did not run."""
    document = ["--document-name", "AWS-StartNonInteractiveCommand"]
    parameters = json.dumps({"command": [shell_command]})
    command = session_command(aws, target, *document, "--parameters", parameters)
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer in {ANSWER_SECONDS} s"
    return "\n".join(filter(None, (answer.stdout, answer.stderr))) or f"exit code {answer.returncode}"


def idle_times(
    aws: Aws, cluster: dict[str, Any], nodes: list[dict[str, Any]]
) -> tuple[dict[str, datetime.timedelta], str | None]:
    """How long each idle worker has had no job, by instance id; or why that is not known.

    Asks Slurm on the controller, since AWS does not know what the nodes do.
    """
    if missing := missing_tool():
        return {}, missing
    said = run_on_node(aws, session_target(cluster, choose_node(nodes, "controller")), _ASK_SLURM)
    idle = parse_idle_times(said)
    if idle is None:
        return {}, f"the controller's Slurm did not answer: {' '.join(said.split())[:200]}"
    names = {node.get("PrivateDnsHostname", "").split(".")[0]: node["InstanceId"] for node in nodes}
    return {names[name]: time for name, time in idle.items() if name in names}, None


def parse_idle_times(text: str) -> dict[str, datetime.timedelta] | None:
    """By node name, how long Slurm's idle nodes have been so; None where the text is no answer of Slurm's."""
    now = re.search(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\s*$", text, re.M)
    described = re.findall(r"^NodeName=(\S+) (.*)$", text, re.M)
    if not (now and described):
        return None
    idle = {}
    for name, fields in described:
        state = re.search(r"\bState=(\w+)", fields)
        busy = re.search(r"\bLastBusyTime=(\d{4}\S+)", fields)
        if state and busy and state[1] == "IDLE":
            since = datetime.datetime.fromisoformat(busy[1])
            idle[name] = datetime.datetime.fromisoformat(now[1]) - since
    return idle
