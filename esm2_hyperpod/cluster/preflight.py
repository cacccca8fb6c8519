"""Questions to AWS, before anything is made, about what stops most first clusters: zones and quotas."""

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster import instances
from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig
from esm2_hyperpod.errors import UserError, problem


def preflight(aws: Aws, config: ClusterConfig) -> None:
    """Raise `UserError` where the zone lacks an instance type or a quota is too low for this cluster.

    A question AWS does not answer, for want of a permission, is reported and does not stop the creation.
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
