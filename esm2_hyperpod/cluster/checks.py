"""Checks before anything is made: the file, the rendered request, then zones and quotas in AWS."""

import re
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster import instances
from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig, load_config
from esm2_hyperpod.cluster.request import StackOutputs, create_cluster_request, example_outputs
from esm2_hyperpod.cluster.rules import config_problems
from esm2_hyperpod.cluster.schema import request_problems
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


def preflight(aws: Aws, config: ClusterConfig) -> None:
    """Raise `UserError` if the zone lacks an instance type or a quota is too low for this cluster.

    If AWS refuses to answer, because a permission is missing, that is printed and creation continues.
    """
    count = instance_counts(config)
    problems = []
    for question in (_zone_problems, _quota_problems):
        try:
            problems += question(aws, config, count)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            print(
                f"cannot check {question.__name__.strip('_').split('_')[0]}s: {error.operation_name}: {code}"
            )
    if problems:
        listed = "".join(f"\n  {line}" for line in problems)
        raise UserError(f"AWS would refuse this cluster; nothing was created{listed}")


def instance_counts(config: ClusterConfig) -> dict[str, int]:
    """How many nodes of each instance type the cluster has."""
    count = {config.workers.instance_type: config.workers.count}
    for group in (config.controller, config.login):
        if group:
            count[group.instance_type] = count.get(group.instance_type, 0) + 1
    return count


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        count = f"{len(problems)} mistakes" if len(problems) > 1 else "1 mistake"
        listed = "".join(f"\n  {line}" for line in problems)
        raise UserError(f"{path}: {count}; nothing was created or changed{listed}")


def _in_terms_of_file(line: str, config: ClusterConfig) -> str:
    path, separator, rest = line.partition(" = ")
    for pattern, field in _FIELD_OF:
        if match := re.fullmatch(pattern, path):
            if field.startswith("workers.") and match[1] == "0":
                field = field.replace("workers", "controller")
            elif field.startswith("workers.") and match[1] == "1" and config.login:
                field = field.replace("workers", "login")
            return field + separator + rest
    return line


def _zone_problems(aws: Aws, config: ClusterConfig, count: dict[str, int]) -> list[str]:
    problems = []
    for instance_type in count:
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


def _quota_problems(aws: Aws, config: ClusterConfig, count: dict[str, int]) -> list[str]:
    pages = (
        aws.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    )
    quotas = {quota["QuotaName"]: quota for page in pages for quota in page["Quotas"]}
    problems = []
    for instance_type, wanted in count.items():
        quota = quotas.get(instances.quota_name(instance_type))
        if quota and quota["Value"] < wanted:
            remedy = (
                "ask for more: aws service-quotas request-service-quota-increase --service-code sagemaker "
                f"--quota-code {quota['QuotaCode']} --desired-value {wanted} --region {config.region}"
            )
            wrong = f"the cluster needs {wanted}"
            problems.append(problem(f"quota '{quota['QuotaName']}'", quota["Value"], wrong, remedy))
    return problems
