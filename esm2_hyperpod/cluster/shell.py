"""Open a shell on a node by way of AWS Systems Manager: no SSH key, no open port."""

import os
import shutil
from typing import Any

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.cluster import find_cluster, list_nodes
from esm2_hyperpod.cluster.failures import cluster_id
from esm2_hyperpod.errors import UserError

_INSTALL = {
    "aws": "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html",
    "session-manager-plugin": (
        "https://docs.aws.amazon.com/systems-manager/latest/userguide/"
        "session-manager-working-with-install-plugin.html"
    ),
}


def session_command(aws: Aws, name: str, node: str | None) -> list[str]:
    """The command that opens a shell on `node`, an instance id or a group; else on login or controller.

    Raises `UserError` where there is no such running node.
    """
    cluster = find_cluster(aws, name)
    if cluster is None:
        raise UserError(f"no cluster {name} in {aws.region}; make it with: hyperpod.py create")
    chosen = _choose(list_nodes(aws, name), node)
    target = f"{cluster_id(cluster)}_{chosen['InstanceGroupName']}-{chosen['InstanceId']}"
    command = ["aws", "ssm", "start-session", "--region", aws.region]
    return [*command, "--target", f"sagemaker-cluster:{target}"]


def open_session(command: list[str]) -> None:
    """Replace this process by the session; `UserError` where the tools for it are not installed."""
    for tool, address in _INSTALL.items():
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not installed; get it from {address}")
    os.execvp(command[0], command)


def _choose(nodes: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    running = [node for node in nodes if node["InstanceStatus"]["Status"] == "Running"]
    for choice in [wanted] if wanted else ["login", "controller"]:
        for node in running:
            if choice in (node["InstanceId"], node["InstanceGroupName"]):
                return node
    there = ", ".join(f"{node['InstanceGroupName']} {node['InstanceId']}" for node in running) or "none"
    raise UserError(f"no running node {wanted or 'login or controller'}; running nodes: {there}")
