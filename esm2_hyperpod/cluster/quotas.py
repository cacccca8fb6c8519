"""Whether the account's quotas allow the cluster, with what is in use already.

The names are those of AWS's page "Prerequisites for using SageMaker HyperPod" and of Service Quotas itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod import instances
from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig
from esm2_hyperpod.errors import problem

IN_ONE_CLUSTER = "Maximum number instances allowed per SageMaker HyperPod cluster"
IN_ALL_CLUSTERS = "Total number of instances allowed across SageMaker HyperPod clusters"
DISK = "Maximum size of EBS volume in GB for a SageMaker HyperPod cluster instance"


@dataclass(frozen=True)
class Need:
    """What the cluster wants of one quota, beside what others use of it."""

    service: str
    quota: str
    wanted: int
    in_use: Callable[[], int] = lambda: 0


def instance_counts(config: ClusterConfig) -> dict[str, int]:
    """How many nodes of each instance type the cluster has."""
    count: dict[str, int] = {}
    for workers in config.worker_groups.values():
        count[workers.instance_type] = count.get(workers.instance_type, 0) + workers.count
    for group in (config.controller, config.login):
        if group:
            count[group.instance_type] = count.get(group.instance_type, 0) + 1
    return count


def quota_problems(aws: Aws, config: ClusterConfig, with_network: bool) -> tuple[list[str], list[str]]:
    """One line for each quota that is too low, and one for each that could not be checked.

    `with_network` asks for what the stack needs as well: a VPC, its gateways and an address.
    """
    problems, unchecked = [], []
    values: dict[str, dict[str, Any]] = {}
    for need in _needs(aws, config, with_network):
        try:
            if need.service not in values:
                values[need.service] = _listed(aws, need.service, "list_service_quotas")
            quota = values[need.service].get(need.quota)
            if quota is None:  # Service Quotas lists what has a value of its own; the rest has AWS's default
                default = f"{need.service} defaults"
                if default not in values:
                    values[default] = _listed(aws, need.service, "list_aws_default_service_quotas")
                quota = values[default].get(need.quota)
            if quota is None:
                unchecked.append(f"quota '{need.quota}': not checked: AWS lists no such quota here")
                continue
            in_use = need.in_use()
        except ClientError as error:
            code = error.response["Error"]["Code"]
            unchecked.append(f"quota '{need.quota}': not checked: {error.operation_name}: {code}")
            continue
        if quota["Value"] < need.wanted + in_use:
            remedy = (
                "ask for more: aws service-quotas request-service-quota-increase --service-code "
                f"{need.service} --quota-code {quota['QuotaCode']} --desired-value {need.wanted + in_use} "
                f"--region {config.region}"
            )
            others = f", {in_use} more are in use" if in_use else ""
            wrong = f"the cluster needs {need.wanted}{others}"
            problems.append(problem(f"quota '{need.quota}'", quota["Value"], wrong, remedy))
    return problems, unchecked


def _needs(aws: Aws, config: ClusterConfig, with_network: bool) -> list[Need]:
    counts = instance_counts(config)
    others = _OtherClusters(aws, config.name)
    needs = [
        Need("sagemaker", instances.quota_name(kind), count, lambda kind=kind: others.nodes(kind))
        for kind, count in counts.items()
    ]
    total = sum(counts.values())
    needs += [
        Need("sagemaker", IN_ONE_CLUSTER, total),
        Need("sagemaker", IN_ALL_CLUSTERS, total, others.nodes),
    ]
    disks = [group.local_disk_gb or 0 for group in config.worker_groups.values()]
    if any(disks):
        needs.append(Need("sagemaker", DISK, max(disks)))
    if with_network:
        ec2 = aws.client("ec2")
        needs += [
            Need("vpc", "VPCs per Region", 1, lambda: len(ec2.describe_vpcs()["Vpcs"])),
            Need(
                "vpc",
                "Internet gateways per Region",
                1,
                lambda: len(ec2.describe_internet_gateways()["InternetGateways"]),
            ),
            Need("vpc", "NAT gateways per Availability Zone", 1, lambda: _gateways(ec2, config)),
            Need("ec2", "EC2-VPC Elastic IPs", 1, lambda: len(ec2.describe_addresses()["Addresses"])),
        ]
    return needs


class _OtherClusters:
    """The nodes of the account's other clusters in the region, asked for once."""

    def __init__(self, aws: Aws, ours: str):
        self._aws, self._ours = aws, ours
        self._counts: dict[str, int] | None = None

    def nodes(self, instance_type: str | None = None) -> int:
        if self._counts is None:
            counts: dict[str, int] = {}
            sagemaker = self._aws.client("sagemaker")
            for page in sagemaker.get_paginator("list_clusters").paginate():
                for summary in page["ClusterSummaries"]:
                    if summary["ClusterName"] == self._ours:
                        continue
                    cluster = sagemaker.describe_cluster(ClusterName=summary["ClusterName"])
                    for group in cluster.get("InstanceGroups", []):
                        kind = group.get("InstanceType", "of several types")
                        counts[kind] = counts.get(kind, 0) + group["CurrentCount"]
            self._counts = counts
        return sum(self._counts.values()) if instance_type is None else self._counts.get(instance_type, 0)


def _listed(aws: Aws, service: str, operation: str) -> dict[str, Any]:
    pages = aws.client("service-quotas").get_paginator(operation).paginate(ServiceCode=service)
    return {quota["QuotaName"]: quota for page in pages for quota in page["Quotas"]}


def _gateways(ec2: Any, config: ClusterConfig) -> int:
    """NAT gateways in the cluster's zone."""
    zone = [{"Name": "availability-zone", "Values": [config.availability_zone]}]
    there = {subnet["SubnetId"] for subnet in ec2.describe_subnets(Filters=zone)["Subnets"]}
    live = [{"Name": "state", "Values": ["pending", "available"]}]
    return sum(
        gateway["SubnetId"] in there for gateway in ec2.describe_nat_gateways(Filters=live)["NatGateways"]
    )
