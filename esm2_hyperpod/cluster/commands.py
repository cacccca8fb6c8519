"""The commands that print, ask and act, from plan to delete."""

import dataclasses
import json
import os
import re
import sys
from argparse import Namespace
from typing import Any

from esm2_hyperpod import instances
from esm2_hyperpod.cluster import ssh
from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.billing import billed_items, cost_table, items_there
from esm2_hyperpod.cluster.checks import checked_request, preflight
from esm2_hyperpod.cluster.cluster import (
    change_workers,
    ensure_cluster,
    existing_cluster,
    failure_lines,
    find_cluster,
    image_is_old,
    list_nodes,
    start_health_check,
    update_software,
)
from esm2_hyperpod.cluster.config import MAIN_GROUP, ClusterConfig
from esm2_hyperpod.cluster.dashboards import FILES, import_dashboards
from esm2_hyperpod.cluster.observability import plan_lines
from esm2_hyperpod.cluster.quotas import IN_ALL_CLUSTERS, IN_ONE_CLUSTER, instance_counts
from esm2_hyperpod.cluster.removal import remove, take_inventory
from esm2_hyperpod.cluster.request import create_cluster_request, example_outputs
from esm2_hyperpod.cluster.rules import config_problems
from esm2_hyperpod.cluster.sessions import (
    choose_node,
    idle_times,
    missing_tool,
    run_on_node,
    session_command,
    session_target,
)
from esm2_hyperpod.cluster.stack import ensure_stack, find_stack, outputs, upload_script, would_lose_metrics
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.sizes import SIZES

UNIREF50_GB = 60  # as CSV and Arrow
CHECKPOINTS = 4  # three kept and the one being written
SHARE_OF_STATE = 0.5  # the rest of the GPUs' memory is for activations
SIGNAL_SECONDS = 840  # 3.train_fsdp.sh asks for 900, and Slurm's clock goes by the minute


def plan(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """Print what will exist, what will bill, and what only AWS can confirm; asks AWS for prices only."""
    if arguments.json:
        print(json.dumps(create_cluster_request(config, example_outputs(config)), indent=2))
        return
    print(f"{arguments.config}: valid\n\ncluster {config.name} in {config.availability_zone} will have")
    print(f"  controller: 1 x {config.controller.instance_type}")
    if config.login:
        print(f"  login: 1 x {config.login.instance_type}")
    workers = config.workers
    for name, group in config.worker_groups.items():
        each = f", each with {instances.describe(group.instance_type)}"
        print(f"  {name}: {group.count} x {group.instance_type}{each}")
    print(f"  /fsx: FSx for Lustre, {config.fsx.size_gb} GB, {config.fsx.throughput} MB/s for each TiB")
    print("\n".join(f"    {line}" for line in checkpoint_lines(config)))
    print(f"  stack {config.stack_name}: the file system, a VPC, NAT gateway, role, bucket")
    for line in plan_lines(config):
        print(f"  {line}")
    if workers.count > 1 and instances.efa_devices(workers.instance_type) == 0:
        print(
            f"note: {workers.instance_type} has no EFA: {workers.count} nodes will exchange gradients slowly"
        )
    print("\nUSD an hour; traffic, requests and logs also bill, by use")
    print("\n".join(cost_table(aws, arguments.prices, config, billed_items(config))))
    print("\n`create` first checks these with AWS; a new account often has quotas of 0")
    for instance_type, count in instance_counts(config).items():
        print(f"  quota '{instances.quota_name(instance_type)}' of {count} or more")
    for quota in (IN_ONE_CLUSTER, IN_ALL_CLUSTERS):
        print(f"  quota '{quota}' of {sum(instance_counts(config).values())} or more")
    print("  quotas for one more VPC, internet gateway, NAT gateway and Elastic IP")
    print(f"  {', '.join(instance_counts(config))} offered in {config.availability_zone}")


def create(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """Stack, set-up script, cluster: each is made only if it does not exist yet."""
    cluster, stack = find_cluster(aws, config.name), find_stack(aws, config.stack_name)
    if cluster is None:
        preflight(aws, config, with_network=stack is None)
    print("USD an hour")
    print("\n".join(cost_table(aws, arguments.prices, config, billed_items(config))))
    if arguments.dry_run:
        for name, there in ((f"stack {config.stack_name}", stack), (f"cluster {config.name}", cluster)):
            print(f"{name}: {'exists, would be kept' if there else 'would be made'}")
        return
    if not (cluster and stack):
        confirm(f"This makes cluster {config.name} in {config.region}. It bills until deleted.", arguments)
    if stack and would_lose_metrics(config, stack):
        confirm("Without observability, this removes the Prometheus workspace with ALL METRICS.", arguments)
    made = ensure_stack(aws, config, arguments.template)
    upload_script(aws, config, made)
    ensure_cluster(aws, checked_request(config, made))
    print("ready; open a shell with: python cluster_setup/hyperpod.py connect")


def checkpoint_lines(config: ClusterConfig) -> list[str]:
    """What the largest model that the workers can train asks of /fsx: space, and time before a limit."""
    gpus, fsx = instances.GPUS.get(config.workers.instance_type), config.fsx
    memory = config.workers.count * gpus.count * gpus.memory_gb if gpus else 0
    trainable = [name for name, size in SIZES.items() if size.training_gb < memory * SHARE_OF_STATE]
    if not trainable:
        return []
    gb, speed = SIZES[trainable[-1]].checkpoint_gb, fsx.size_gb / 1024 * fsx.throughput
    seconds, needed = 1000 * gb / speed, UNIREF50_GB + CHECKPOINTS * gb
    lines = [
        f"a checkpoint of {trainable[-1]}, the largest model for these workers: {gb:.0f} GB, {seconds:.0f} s "
        f"at {speed:.0f} MB/s; with the data, {CHECKPOINTS} of them take {needed:.0f} GB"
    ]
    if needed > fsx.size_gb:
        lines.append("note: that does not fit; raise fsx.size_gb")
    if seconds > SIGNAL_SECONDS:
        lines.append(
            f"note: before a time limit it needs more than {SIGNAL_SECONDS} s: raise fsx.throughput, or "
            f"sbatch --signal=B:USR1@{2 * seconds:.0f}"
        )
    return lines


def status(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """The cluster, its nodes, which workers idle, what went wrong, and what an hour costs."""
    cluster = find_cluster(aws, config.name)
    if cluster is None:
        print(f"cluster {config.name} in {config.region}: does not exist")
    else:
        print(f"cluster {config.name} in {config.region}: {cluster['ClusterStatus']}")
        for group in cluster["InstanceGroups"]:
            count = f"{group['CurrentCount']} of {group['TargetCount']} nodes"
            print(f"  {group['InstanceGroupName']}: {count}, {group['InstanceType']}")
        _print_nodes(aws, cluster)
    found = take_inventory(aws, config)
    lines = found.lines()
    _print_list("bills now:" if lines else "nothing bills", lines)
    if items := items_there(config, found.cluster, found.resources):
        print("USD an hour")
        print("\n".join(cost_table(aws, arguments.prices, config, items)))


def _print_nodes(aws: Aws, cluster: dict[str, Any]) -> None:
    nodes = list_nodes(aws, cluster["ClusterName"])
    idle, unknown = {}, None
    if any(node["InstanceGroupName"] not in ("controller", "login") for node in nodes):
        idle, unknown = idle_times(aws, cluster, nodes)
    for node in nodes:
        state = node["InstanceStatus"]["Status"]
        if node["InstanceId"] in idle and node["InstanceGroupName"] not in ("controller", "login"):
            minutes = int(idle[node["InstanceId"]].total_seconds() // 60)
            state += f", idle for {minutes // 60} h {minutes % 60} min: it bills"
        if image_is_old(node):
            state += f", image: {node['ImageVersionStatus']} (hyperpod.py update)"
        print(f"  {node['InstanceId']}  {node['InstanceGroupName']:<10}  {state}")
    if unknown:
        print(f"  which workers idle is not known: {unknown}")
    for line in failure_lines(aws, cluster, nodes):
        print(f"  problem: {line}")


def connect(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """Replace this process by a shell on a node, by way of AWS Systems Manager: no SSH key, no open port.

    With --ssh_config print a host entry for ~/.ssh/config instead, and give the node the user's key. Raises
    `UserError` if there is no such running node, or the tools for it are not installed.
    """
    if arguments.key and not arguments.ssh_config:
        raise UserError("--key goes with --ssh_config; a shell needs no key")
    cluster = existing_cluster(aws, config.name)
    node = choose_node(list_nodes(aws, config.name), arguments.node)
    target = session_target(cluster, node)
    command = session_command(aws, target)
    if arguments.ssh_config:
        _ssh_config(arguments, config, aws, target, node["InstanceId"])
        return
    if arguments.dry_run:
        print(" ".join(command))
        return
    if missing := missing_tool():
        raise UserError(missing)
    os.execvp(command[0], command)


def _ssh_config(arguments: Namespace, config: ClusterConfig, aws: Aws, target: str, instance_id: str) -> None:
    """The entry goes to stdout, so that >> ~/.ssh/config takes it; all else to stderr."""
    key = ssh.find_key(arguments.key)
    if not arguments.dry_run:
        if missing := missing_tool():
            raise UserError(missing)
        said = run_on_node(aws, target, ssh.authorize(key))
        if not re.search(r"^authorized\s*$", said, re.M):
            why = " ".join(said.split())[:200]
            raise UserError(f"the node did not take {key}: {why}; try again in a minute")
        print(f"the node lets in {key}; after it is replaced, run this again", file=sys.stderr)
    print(ssh.host_entry(config.name, instance_id, session_command(aws, target), key), end="")
    for use in ssh.uses(config.name):
        print(f"  {use}", file=sys.stderr)


def scale(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """Change the number of a group's workers, if the rules and AWS's quota allow it."""
    name, count = arguments.group, arguments.count
    if name not in config.worker_groups:
        raise UserError(f"--group {name}: not in cluster.yaml, which has {', '.join(config.worker_groups)}")
    written = config.worker_groups[name].count
    group = dataclasses.replace(config.worker_groups[name], count=count, min_count=None)
    if name == MAIN_GROUP:
        wanted = dataclasses.replace(config, workers=group)
    else:
        wanted = dataclasses.replace(config, other_workers=config.other_workers | {name: group})
    if problems := config_problems(wanted):
        raise UserError("; ".join(problems))
    groups = existing_cluster(aws, config.name)["InstanceGroups"]
    preflight(aws, wanted, there={there["InstanceGroupName"]: there["CurrentCount"] for there in groups})
    change_workers(aws, config.name, name, count, arguments.dry_run)
    if arguments.dry_run:
        return
    if count == 0:
        back = f"hyperpod.py scale --group {name} --count {written or 1}"
        print(f"none of {name} bills; all else still does (hyperpod.py status); get them back with: {back}")
    elif count != written:
        print(f"also write {config.field_of(name)}.count: {count} into {arguments.config}")


def check(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """Start AWS's health check of a group's nodes, or of one node."""
    existing_cluster(aws, config.name)
    running = [n for n in list_nodes(aws, config.name) if n["InstanceStatus"]["Status"] == "Running"]
    nodes = [n["InstanceId"] for n in running if n["InstanceGroupName"] == arguments.group]
    if arguments.node:
        nodes = [node for node in nodes if node == arguments.node]
    if not nodes:
        wanted = arguments.node or arguments.group
        there = ", ".join(f"{n['InstanceGroupName']} {n['InstanceId']}" for n in running) or "none"
        raise UserError(f"{wanted}: no such running node in group {arguments.group}; running nodes: {there}")
    what = f"stresses GPUs and network of {', '.join(nodes)}"
    if arguments.dry_run:
        print(f"would start a check that {what}")
        return
    warning = "Jobs there would fail; AWS reboots or replaces a node that does not pass. All nodes bill on."
    confirm(f"This {what}. {warning}", arguments)
    start_health_check(aws, config.name, arguments.group, nodes)
    print("started; the nodes are DeepHealthCheckInProgress until it ends: hyperpod.py status")


def update(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """Give the cluster AWS's latest image."""
    existing_cluster(aws, config.name)
    nodes = list_nodes(aws, config.name)
    old = [node["InstanceId"] for node in nodes if image_is_old(node)]
    said = f"{len(old)} of {len(nodes)} nodes have an old image"
    if arguments.dry_run:
        print(f"{said}; would give all nodes the latest")
        return
    confirm(
        f"{said}. This gives all nodes the latest and WIPES THEIR ROOT DISKS, the controller's too, with the "
        "queue of jobs and what lies outside /fsx. Jobs must have ended.",
        arguments,
    )
    update_software(aws, config.name)
    print("updated; check it with: python cluster_setup/doctor.py")


def dashboards(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """Put the data sources and the dashboards of this project into the cluster's Grafana workspace."""
    found = take_inventory(aws, config)
    workspace = found.resources.get("GrafanaWorkspace")
    if found.stack is None or workspace is None:
        raise UserError(
            f"cluster {config.name} has no Grafana workspace; write observability: grafana into "
            f"{arguments.config} and run: hyperpod.py create"
        )
    names = ", ".join(path.stem for path in FILES)
    if arguments.dry_run:
        print(f"would put data sources and the dashboards {names} into {workspace}")
        return
    confirm(
        f"This puts the dashboards {names} into {workspace} as a service account, which AWS bills as one "
        "who edits this month.",
        arguments,
    )
    for address in import_dashboards(aws, outputs(found.stack), workspace):
        print(address)
    people = '[{"action": "ADD", "role": "ADMIN", "users": [{"id": "USER_ID", "type": "SSO_USER"}]}]'
    print("let somebody in, with the user's id in IAM Identity Center:")
    print(
        f"  aws grafana update-permissions --region {config.region} --workspace-id {workspace} "
        f"--update-instruction-batch '{people}'"
    )


def delete(arguments: Namespace, config: ClusterConfig, aws: Aws) -> None:
    """List what bills, remove it, and list what is left."""
    found = take_inventory(aws, config)
    if not found.lines():
        print(f"nothing of cluster {config.name} exists in {config.region}; nothing bills")
        return
    _print_list("bills now:", found.lines())
    nodes, everything = "the nodes and all data on their disks", "all of it, including the data on /fsx"
    if found.exports and not arguments.without_export:
        everything += " except /fsx/data and /fsx/runs, which the bucket has or gets first"
    what = nodes if arguments.keep_stack else everything
    if arguments.dry_run:
        print(f"would remove {what}")
        return
    confirm(f"This removes {what}. It cannot be undone.", arguments)
    left = remove(aws, config, found, arguments.keep_stack, not arguments.without_export).lines()
    _print_list("still bills:" if left else "all removed; nothing bills", left)
    if any(line.startswith("backup") for line in left):
        print("backups are yours to keep; remove one with: aws fsx delete-backup --backup-id ID")


def confirm(warning: str, arguments: Namespace) -> None:
    """Continue only if the user agrees; without a terminal to ask on, only with --yes."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{warning} There is no terminal to ask on; add --yes to continue")
    if input(f"{warning} Type yes to continue: ").strip().lower() != "yes":
        raise UserError("stopped; nothing was changed")


def _print_list(headline: str, lines: list[str]) -> None:
    print(headline, *(f"  {line}" for line in lines), sep="\n")
