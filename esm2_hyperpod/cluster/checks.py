"""Checks before anything is made: the file, the request, then training plan, zones and quotas in AWS."""

import re
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig, load_config
from esm2_hyperpod.cluster.export import bucket_problems
from esm2_hyperpod.cluster.observability import identity_center_problems
from esm2_hyperpod.cluster.quotas import instance_counts, quota_problems
from esm2_hyperpod.cluster.request import StackOutputs, create_cluster_request, example_outputs
from esm2_hyperpod.cluster.rules import config_problems
from esm2_hyperpod.cluster.schema import request_problems
from esm2_hyperpod.cluster.training_plan import training_plan_problems
from esm2_hyperpod.errors import UserError, problem

# Where in cluster.yaml a part of the request comes from; "workers" stands for the group's own name.
_FIELD_OF = [
    (r"ClusterName", "name"),
    (r"InstanceGroups\[(\d+)\]\.InstanceType", "workers.instance_type"),
    (r"InstanceGroups\[(\d+)\]\.InstanceCount", "workers.count"),
    (r"InstanceGroups\[(\d+)\]\.MinInstanceCount", "workers.min_count"),
    (r"InstanceGroups\[(\d+)\]\.TrainingPlanArn", "workers.training_plan_arn"),
    (r"InstanceGroups\[(\d+)\]\.InstanceStorageConfigs.*VolumeSizeInGB", "workers.local_disk_gb"),
    (r"InstanceGroups\[(\d+)\]\.LifeCycleConfig\.\w+", "options.on_init_complete"),
    (r"InstanceGroups\[\d+\]\.(InstanceGroupName|SlurmConfig\.PartitionNames.*)", "other_workers"),
    (r"NodeRecovery", "options.node_recovery"),
    (r"Tags(\[\d+\]\.\w+)?", "options.tags"),
]


def read_config(path: Path) -> ClusterConfig:
    """The configuration in `path`, its names and types checked.

    Enough to look at a cluster or remove it: other mistakes in the file must not prevent that.
    Raises `UserError` listing every mistake, one a line.
    """
    config, problems = load_config(path)
    _refuse(path, problems)
    return config


def checked_config(path: Path) -> ClusterConfig:
    """The configuration in `path`, fit to make a cluster of; raises `UserError` as `read_config` does."""
    config = read_config(path)
    problems = config_problems(config)
    seen = {line.partition(" = ")[0] for line in problems}
    request = create_cluster_request(config, example_outputs(config))
    for line in request_problems("CreateCluster", request):
        line = _in_terms_of_file(line, config)
        field = line.partition(" = ")[0]
        if field not in seen:
            seen.add(field)
            problems.append(line)
    _refuse(path, problems)
    return config


def checked_request(config: ClusterConfig, stack: StackOutputs) -> dict[str, Any]:
    """The request to send; raises `UserError` where what the stack gave makes it unfit."""
    request = create_cluster_request(config, stack)
    if problems := request_problems("CreateCluster", request):
        raise UserError(f"the request is not valid, nothing was sent: {'; '.join(problems)}")
    return request


def preflight(
    aws: Aws, config: ClusterConfig, with_network: bool = False, there: dict[str, int] | None = None
) -> None:
    """Raise `UserError` if something in the account does not allow this cluster.

    `with_network` checks for the stack, too; `there` is how many nodes each group has. What AWS does not
    answer, because a permission is missing, is printed, and creation continues.
    """
    problems = []
    for what, question in (
        ("the training plan", lambda: training_plan_problems(aws, config, there or {})),
        ("the zone", lambda: _zone_problems(aws, config)),
        ("the data bucket", lambda: bucket_problems(aws, config)),
        ("IAM Identity Center", lambda: identity_center_problems(aws, config)),
    ):
        try:
            problems += question()
        except ClientError as error:
            print(f"{what}: not checked: {error.operation_name}: {error.response['Error']['Code']}")
    too_low, unchecked = quota_problems(aws, config, with_network)
    problems += too_low
    for line in unchecked:
        print(line)
    if problems:
        listed = "".join(f"\n  {line}" for line in problems)
        raise UserError(f"AWS would refuse this cluster; nothing was created{listed}")


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        count = f"{len(problems)} mistakes" if len(problems) > 1 else "1 mistake"
        listed = "".join(f"\n  {line}" for line in problems)
        raise UserError(f"{path}: {count}; nothing was created or changed{listed}")


def _in_terms_of_file(line: str, config: ClusterConfig) -> str:
    path, separator, rest = line.partition(" = ")
    for pattern, field in _FIELD_OF:
        if match := re.fullmatch(pattern, path):
            if field.startswith("workers."):
                groups = ["controller", *["login"] * bool(config.login)]
                groups += [config.field_of(name) for name in config.worker_groups]
                field = field.replace("workers", groups[int(match[1])], 1)
            return field + separator + rest
    return line


def _zone_problems(aws: Aws, config: ClusterConfig) -> list[str]:
    problems = []
    for instance_type in instance_counts(config):
        offers = aws.client("ec2").describe_instance_type_offerings(
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": [instance_type.removeprefix("ml.")]}],
        )["InstanceTypeOfferings"]
        zones = sorted(offer["Location"] for offer in offers)
        if config.availability_zone not in zones:
            remedy = f"use one of {', '.join(zones)}" if zones else f"no zone of {config.region} has it"
            wrong = f"has no {instance_type}"
            problems.append(problem("availability_zone", config.availability_zone, wrong, remedy))
    return problems
