"""Whether a training plan, capacity paid for in advance, fits the workers that shall use it."""

import datetime

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig
from esm2_hyperpod.errors import problem

FIELD = "workers.training_plan_arn"
# API reference, TrainingPlanOffering: a plan serves only the kind of resource it was bought for.
TARGET = "hyperpod-cluster"


def training_plan_problems(aws: Aws, config: ClusterConfig, in_use: int = 0) -> list[str]:
    """One line for each reason why the plan cannot serve the workers; prints when it begins and ends.

    `in_use` is how many of its nodes this cluster has already.
    """
    workers, arn = config.workers, config.workers.training_plan_arn
    if arn is None:
        return []

    def wrong(text: str, remedy: str) -> str:
        return problem(FIELD, arn.rpartition("/")[2], text, remedy)

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
        problems.append(wrong(has, f"set workers.instance_type: {kinds[0]}"))
    zones = sorted({capacity["AvailabilityZone"] for capacity in ours if "AvailabilityZone" in capacity})
    if zones and config.availability_zone not in zones:
        problems.append(wrong(f"is in {', '.join(zones)}", f"set availability_zone: {zones[0]}"))
    free = plan.get("AvailableInstanceCount")
    if free is not None and ours and free + in_use < workers.count:
        has = f"has {free + in_use} nodes for this cluster, {workers.count} are asked for"
        problems.append(wrong(has, f"set workers.count: {free + in_use}"))
    return problems
