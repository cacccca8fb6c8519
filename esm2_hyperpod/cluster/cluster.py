"""The cluster itself: find it, create it, follow it, scale it, and say what went wrong with it."""

from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.failures import failure_lines
from esm2_hyperpod.cluster.progress import wait_until
from esm2_hyperpod.cluster.schema import request_problems
from esm2_hyperpod.errors import UserError

CREATE_MINUTES = 120
DELETE_MINUTES = 60


def find_cluster(aws: Aws, name: str) -> dict[str, Any] | None:
    """DescribeCluster's answer, or None where there is no such cluster."""
    pages = aws.client("sagemaker").get_paginator("list_clusters").paginate(NameContains=name)
    names = [cluster["ClusterName"] for page in pages for cluster in page["ClusterSummaries"]]
    return aws.client("sagemaker").describe_cluster(ClusterName=name) if name in names else None


def list_nodes(aws: Aws, name: str) -> list[dict[str, Any]]:
    """Every node of the cluster, by group and age."""
    pages = aws.client("sagemaker").get_paginator("list_cluster_nodes").paginate(ClusterName=name)
    nodes = [node for page in pages for node in page["ClusterNodeSummaries"]]
    return sorted(nodes, key=lambda node: (node["InstanceGroupName"], str(node.get("LaunchTime"))))


def ensure_cluster(aws: Aws, request: dict[str, Any]) -> None:
    """Create the cluster, or go on with the one that is there, and wait until all its nodes run.

    Raises `UserError` where it failed, with AWS's reasons, or where it differs from `request`.
    """
    name = request["ClusterName"]
    cluster = find_cluster(aws, name)
    if cluster and cluster["ClusterStatus"] == "Deleting":
        wait_deleted(aws, name)
        cluster = None
    if cluster:
        print(f"cluster {name} is there: {cluster['ClusterStatus']}")
        _check_same_groups(cluster, request)
    else:
        print(f"creating cluster {name} (15 to 30 minutes, more where capacity is short)")
        try:
            aws.client("sagemaker").create_cluster(**request)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceInUse":  # made since we looked
                raise
    wait_running(aws, name)


def wait_running(aws: Aws, name: str) -> None:
    """Wait until the cluster is in service with all its nodes; `UserError` with AWS's reasons if it fails."""
    wait_until(lambda: _observe_running(aws, name), CREATE_MINUTES)


def scale(aws: Aws, name: str, count: int, dry_run: bool) -> None:
    """Set the number of workers. Everything else about the group is sent as AWS describes it."""
    cluster = find_cluster(aws, name)
    if cluster is None:
        raise UserError(f"no cluster {name} in {aws.region}; make it with: hyperpod.py create")
    group = _group(cluster, "workers")
    current = group.get("TargetCount", group["CurrentCount"])
    if current == count:
        print(f"cluster {name} already has {count} workers")
        return
    request = {"ClusterName": name, "InstanceGroups": [specification(aws, group, count)]}
    if problems := request_problems("UpdateCluster", request):
        raise UserError(f"cannot scale to {count} workers: {'; '.join(problems)}")
    if dry_run:
        print(f"would change cluster {name} from {current} to {count} workers")
        return
    print(f"changing cluster {name} from {current} to {count} workers")
    aws.client("sagemaker").update_cluster(**request)
    wait_running(aws, name)


def specification(aws: Aws, group: dict[str, Any], count: int) -> dict[str, Any]:
    """UpdateCluster's specification of a group that DescribeCluster describes, with `count` nodes."""
    service = aws.client("sagemaker").meta.service_model
    accepted = service.shape_for("ClusterInstanceGroupSpecification").members
    return {key: value for key, value in group.items() if key in accepted} | {"InstanceCount": count}


def delete_cluster(aws: Aws, name: str) -> None:
    """Delete the cluster and wait until it is gone."""
    cluster = find_cluster(aws, name)
    if cluster is None:
        return
    if cluster["ClusterStatus"] != "Deleting":
        aws.client("sagemaker").delete_cluster(ClusterName=name)
    wait_deleted(aws, name)


def wait_deleted(aws: Aws, name: str) -> None:
    """Wait until the cluster is gone."""
    wait_until(lambda: _observe_deletion(aws, name), DELETE_MINUTES)


def _observe_running(aws: Aws, name: str) -> tuple[str, bool]:
    cluster = find_cluster(aws, name)
    if cluster is None:
        raise UserError(f"cluster {name}: gone while waiting for it; create it with: hyperpod.py create")
    status = cluster["ClusterStatus"]
    if status in ("Failed", "RollingBack", "Deleting"):
        reasons = "".join(f"\n  {line}" for line in failure_lines(aws, cluster))
        remedy = "remove it with `hyperpod.py delete --keep_stack`, then create it again"
        raise UserError(f"cluster {name}: {status}; correct the cause below, {remedy}{reasons}")
    groups = cluster["InstanceGroups"]
    counts = [(g["InstanceGroupName"], g["CurrentCount"], g.get("TargetCount", 0)) for g in groups]
    shown = ", ".join(f"{group} {current}/{target}" for group, current, target in counts)
    done = status == "InService" and all(current == target for _, current, target in counts)
    if not done and (warnings := failure_lines(aws, cluster)):
        shown += f"; latest trouble: {warnings[0]}"
    return f"cluster {name}: {status}; nodes: {shown}", done


def _observe_deletion(aws: Aws, name: str) -> tuple[str, bool]:
    cluster = find_cluster(aws, name)
    if cluster is None:
        return f"cluster {name}: gone", True
    if cluster["ClusterStatus"] == "Failed":
        reasons = "; ".join(failure_lines(aws, cluster))
        raise UserError(f"cluster {name}: could not be deleted and may go on billing: {reasons}")
    return f"cluster {name}: {cluster['ClusterStatus']}", False


def _group(cluster: dict[str, Any], name: str) -> dict[str, Any]:
    groups = {group["InstanceGroupName"]: group for group in cluster["InstanceGroups"]}
    if name not in groups:
        raise UserError(f"cluster {cluster['ClusterName']}: has no group {name!r}, only {', '.join(groups)}")
    return groups[name]


def _check_same_groups(cluster: dict[str, Any], request: dict[str, Any]) -> None:
    there = {g["InstanceGroupName"]: g["InstanceType"] for g in cluster["InstanceGroups"]}
    asked = {g["InstanceGroupName"]: g["InstanceType"] for g in request["InstanceGroups"]}
    if there != asked:
        raise UserError(
            f"cluster {cluster['ClusterName']} has {there}, cluster.yaml asks for {asked}; set cluster.yaml "
            "back, or remove the cluster with `hyperpod.py delete --keep_stack` and create it again"
        )
    wanted = {g["InstanceGroupName"]: g["InstanceCount"] for g in request["InstanceGroups"]}["workers"]
    current = _group(cluster, "workers").get("TargetCount", wanted)
    if current != wanted:
        print(f"it has {current} workers, cluster.yaml asks for {wanted}: change it with hyperpod.py scale")
