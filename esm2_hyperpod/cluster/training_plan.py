"""Whether a training plan, capacity paid for in advance, fits the workers that shall use it."""

import datetime

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig, Workers
from esm2_hyperpod.errors import problem

# API reference, TrainingPlanOffering: a plan serves only the kind of resource it was bought for.
TARGET = "hyperpod-cluster"


def training_plan_problems(aws: Aws, config: ClusterConfig, there: dict[str, int]) -> list[str]:
    """One line for each reason why a plan cannot serve its workers; prints when each begins and ends.

    `there` is how many nodes each group has already.
    """
    return [
        line
        for name, group in config.worker_groups.items()
        if group.training_plan_arn
        for line in _problems(aws, config, config.field_of(name), group, there.get(name, 0))
    ]


def _problems(aws: Aws, config: ClusterConfig, field: str, workers: Workers, in_use: int) -> list[str]:
    arn = workers.training_plan_arn

    def wrong(text: str, remedy: str) -> str:
        return problem(f"{field}.training_plan_arn", arn.rpartition("/")[2], text, remedy)

    another = "choose another plan: aws sagemaker list-training-plans"
    try:
        plan = aws.client("sagemaker").describe_training_plan(TrainingPlanName=arn.rpartition("/")[2])
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("ResourceNotFound", "ValidationException"):
            raise
        return [wrong(f"there is no such training plan in {config.region}", another)]
    begin, end = plan.get("StartTime"), plan.get("EndTime")
    period = " to ".join(f"{time:%Y-%m-%d %H:%M %Z}" for time in (begin, end) if time)
    print(f"training plan {plan['TrainingPlanName']}: {plan['Status']}, {period or 'no times given'}")
    if begin and begin > datetime.datetime.now(datetime.timezone.utc):
        print(f"note: it has not begun; the workers come on {begin:%Y-%m-%d %H:%M %Z}")
    problems = []
    if plan["Status"] not in ("Active", "Scheduled"):
        said = f" ({plan['StatusMessage']})" if plan.get("StatusMessage") else ""
        problems.append(wrong(f"is {plan['Status']}{said}", another))
    elif end and end < datetime.datetime.now(datetime.timezone.utc):
        problems.append(wrong(f"ended on {end:%Y-%m-%d}", another))
    if TARGET not in plan.get("TargetResources", [TARGET]):
        bought_for = ", ".join(plan["TargetResources"])
        problems.append(wrong(f"was bought for {bought_for}, not for {TARGET}", another))
    capacities = plan.get("ReservedCapacitySummaries", [])
    kinds = sorted({capacity["InstanceType"] for capacity in capacities})
    ours = [capacity for capacity in capacities if capacity["InstanceType"] == workers.instance_type]
    if capacities and not ours:
        has = f"reserves {', '.join(kinds)}, not {workers.instance_type}"
        problems.append(wrong(has, f"set {field}.instance_type: {kinds[0]}"))
    zones = sorted({capacity["AvailabilityZone"] for capacity in ours if "AvailabilityZone" in capacity})
    if zones and config.availability_zone not in zones:
        problems.append(wrong(f"is in {', '.join(zones)}", f"set availability_zone: {zones[0]}"))
    free = plan.get("AvailableInstanceCount")
    if free is not None and ours and free + in_use < workers.count:
        has = f"has {free + in_use} nodes for this cluster, {workers.count} are asked for"
        problems.append(wrong(has, f"set {field}.count: {free + in_use}"))
    return problems
