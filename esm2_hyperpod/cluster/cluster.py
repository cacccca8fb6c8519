"""The cluster itself: find it, create it, follow it, scale it, and say what went wrong with it."""

import datetime
from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws, wait_until
from esm2_hyperpod.cluster.request import DEEP_HEALTH_CHECKS
from esm2_hyperpod.cluster.schema import request_problems, sagemaker_model
from esm2_hyperpod.errors import UserError

CREATE_MINUTES = 120
DELETE_MINUTES = 60
LATEST_EVENTS = 5
EVENT_MINUTES = 60  # an older error event has been dealt with, or has come again
_UNDONE = ("Failed", "RollbackInProgress", "RollbackComplete")
_HOPELESS = {
    "Failed": "remove it with `hyperpod.py delete --keep_stack`, then create it again",
    "RollingBack": "wait until AWS has restored its previous state, then run the same command again",
    "Deleting": "wait until it is gone, then run the same command again",
}


def find_cluster(aws: Aws, name: str) -> dict[str, Any] | None:
    """DescribeCluster's answer, or None where there is no such cluster."""
    pages = aws.client("sagemaker").get_paginator("list_clusters").paginate(NameContains=name)
    names = [cluster["ClusterName"] for page in pages for cluster in page["ClusterSummaries"]]
    return aws.client("sagemaker").describe_cluster(ClusterName=name) if name in names else None


def existing_cluster(aws: Aws, name: str) -> dict[str, Any]:
    """DescribeCluster's answer; raises `UserError` if there is no such cluster."""
    cluster = find_cluster(aws, name)
    if cluster is None:
        raise UserError(f"no cluster {name} in {aws.region}; create it with: hyperpod.py create")
    return cluster


def image_is_old(node: dict[str, Any]) -> bool:
    """Whether AWS has a newer image than a node's; it does not say for images of one's own."""
    return node.get("ImageVersionStatus", "UpToDate") != "UpToDate"


def list_nodes(aws: Aws, name: str) -> list[dict[str, Any]]:
    """Every node of the cluster, sorted by group and age."""
    pages = aws.client("sagemaker").get_paginator("list_cluster_nodes").paginate(ClusterName=name)
    nodes = [node for page in pages for node in page["ClusterNodeSummaries"]]
    return sorted(nodes, key=lambda node: (node["InstanceGroupName"], str(node.get("LaunchTime"))))


def ensure_cluster(aws: Aws, request: dict[str, Any]) -> None:
    """Create the cluster, or resume with the existing one, and wait until all its nodes run.

    Raises `UserError` if it failed, with AWS's reasons, or if it differs from `request`.
    """
    name = request["ClusterName"]
    cluster = find_cluster(aws, name)
    if cluster and cluster["ClusterStatus"] == "Deleting":
        wait_deleted(aws, name)
        cluster = None
    least: dict[str, int] = {}
    if cluster:
        print(f"cluster {name} exists: {cluster['ClusterStatus']}")
        _check_same_groups(cluster, request)
    else:
        least = {g["InstanceGroupName"]: g.get("MinInstanceCount", 0) for g in request["InstanceGroups"]}
        print(f"creating cluster {name} (15 to 30 minutes, longer if capacity is short)")
        try:
            aws.client("sagemaker").create_cluster(**request)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceInUse":  # made since we looked
                raise
    wait_until(lambda: _observe_running(aws, name, least=least), CREATE_MINUTES)


def change_workers(aws: Aws, name: str, group_name: str, count: int, dry_run: bool) -> None:
    """Set the number of a group's nodes. Everything else about the group is sent as AWS describes it."""
    group = find_group(existing_cluster(aws, name), group_name)
    current = group["TargetCount"]
    if current == count:
        print(f"cluster {name} already has {count} {group_name}")
        return
    request = {"ClusterName": name, "InstanceGroups": [specification(group, count)]}
    if problems := request_problems("UpdateCluster", request):
        raise UserError(f"cannot scale to {count} {group_name}: {'; '.join(problems)}")
    if dry_run:
        print(f"would change cluster {name} from {current} to {count} {group_name}")
        return
    print(f"changing cluster {name} from {current} to {count} {group_name}")
    aws.client("sagemaker").update_cluster(**request)
    wait_until(lambda: _observe_running(aws, name, {group_name: count}), CREATE_MINUTES)


def start_health_check(aws: Aws, name: str, group: str, nodes: list[str]) -> None:
    """Have AWS stress GPUs and network of some nodes; it reboots or replaces those that fail."""
    checks = DEEP_HEALTH_CHECKS if len(nodes) > 1 else DEEP_HEALTH_CHECKS[:1]  # one node has no peer
    asked = {"InstanceGroupName": group, "InstanceIds": nodes, "DeepHealthChecks": checks}
    aws.client("sagemaker").start_cluster_health_check(
        ClusterName=name, DeepHealthCheckConfigurations=[asked]
    )


def update_software(aws: Aws, name: str) -> None:
    """Give all nodes AWS's latest image, and wait until all run again."""
    aws.client("sagemaker").update_cluster_software(ClusterName=name)
    wait_until(lambda: _observe_update(aws, name), CREATE_MINUTES)
    wait_until(lambda: _observe_running(aws, name), CREATE_MINUTES)


def specification(group: dict[str, Any], count: int) -> dict[str, Any]:
    """UpdateCluster's specification of a group that DescribeCluster describes, with `count` nodes."""
    accepted = sagemaker_model().shape_for("ClusterInstanceGroupSpecification").members
    kept = {key: value for key, value in group.items() if key in accepted}
    if group.get("MinCount"):  # the same under another name, and never above the count
        kept["MinInstanceCount"] = min(group["MinCount"], count)
    return kept | {"InstanceCount": count}


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


def failure_lines(aws: Aws, cluster: dict[str, Any], nodes: list[dict[str, Any]]) -> list[str]:
    """The cluster's own message, its latest error events, its failed nodes' messages, the log to read."""
    lines = [cluster["FailureMessage"]] if cluster.get("FailureMessage") else []
    if cluster.get("NodeProvisioningMode") == "Continuous":  # AWS keeps events of no other clusters
        lines += _error_events(aws, cluster["ClusterName"])
    lines += _failed_nodes(nodes)
    if lines:
        lines.append(f"set-up logs of the nodes: aws logs tail {log_group(cluster)} --region {aws.region}")
    return [" ".join(line.split()) for line in lines]


def log_group(cluster: dict[str, Any]) -> str:
    """The CloudWatch log group of the nodes' set-up."""
    return f"/aws/sagemaker/Clusters/{cluster['ClusterName']}/{cluster_id(cluster)}"


def cluster_id(cluster: dict[str, Any]) -> str:
    """The id that AWS gave the cluster: the last part of its ARN."""
    return cluster["ClusterArn"].rpartition("/")[2]


def _observe_running(
    aws: Aws, name: str, wanted: dict[str, int] | None = None, least: dict[str, int] | None = None
) -> tuple[str, bool]:
    """The cluster's state in a line, and whether it is in service and all its nodes are `Running`.

    `wanted` is how many a group shall have. Raises `UserError` when waiting has become pointless, as when AWS
    did not find `least` nodes of a group in its three hours and has set their number to 0.
    """
    cluster = find_cluster(aws, name)
    if cluster is None:
        raise UserError(f"cluster {name}: deleted while waiting for it; create it with: hyperpod.py create")
    status = cluster["ClusterStatus"]
    nodes = list_nodes(aws, name)
    reasons = failure_lines(aws, cluster, nodes)
    if status in _HOPELESS:
        listed = "".join(f"\n  {line}" for line in reasons)
        raise UserError(f"cluster {name}: {status}; correct the cause below, {_HOPELESS[status]}{listed}")
    target = {g["InstanceGroupName"]: g["TargetCount"] for g in cluster["InstanceGroups"]}
    for group, count in (least or {}).items():
        if count and target[group] == 0:
            raise UserError(
                f"cluster {name}: AWS did not find {group}.min_count = {count} nodes in 3 hours, has removed "
                "those it had, and set their number to 0; try another zone or type, or later: "
                f"hyperpod.py scale --group {group} --count N"
            )
    running = dict.fromkeys(target, 0)
    for node in nodes:
        running[node["InstanceGroupName"]] += node["InstanceStatus"]["Status"] == "Running"
    done = status == "InService" and running == target and (wanted or {}).items() <= running.items()
    shown = ", ".join(f"{group} {running[group]}/{target[group]}" for group in target)
    problem = f"; latest problem: {reasons[0]}" if reasons and not done else ""
    return f"cluster {name}: {status}; running nodes: {shown}{problem}", done


def _observe_update(aws: Aws, name: str) -> tuple[str, bool]:
    """Each group's software update; the cluster is `InService` before the first one begins, too."""
    groups = existing_cluster(aws, name)["InstanceGroups"]
    states = {g["InstanceGroupName"]: g.get("SoftwareUpdateStatus", "Pending") for g in groups}
    if bad := [f"{group}: {state}" for group, state in states.items() if state in _UNDONE]:
        raise UserError(f"cluster {name}: the update failed ({', '.join(bad)}); see: hyperpod.py status")
    shown = ", ".join(f"{group} {state}" for group, state in states.items())
    return f"software of cluster {name}: {shown}", set(states.values()) == {"Succeeded"}


def _observe_deletion(aws: Aws, name: str) -> tuple[str, bool]:
    cluster = find_cluster(aws, name)
    if cluster is None:
        return f"cluster {name}: gone", True
    if cluster["ClusterStatus"] == "Failed":
        reasons = "; ".join(failure_lines(aws, cluster, list_nodes(aws, name)))
        raise UserError(f"cluster {name}: could not be deleted and may still bill: {reasons}")
    return f"cluster {name}: {cluster['ClusterStatus']}", False


def find_group(cluster: dict[str, Any], name: str) -> dict[str, Any]:
    """One of DescribeCluster's groups; raises `UserError` if there is none of that name."""
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
    for group in request["InstanceGroups"]:
        name, wanted = group["InstanceGroupName"], group["InstanceCount"]
        if (current := find_group(cluster, name)["TargetCount"]) != wanted:
            change = f"hyperpod.py scale --group {name} --count {wanted}"
            print(f"it has {current} {name}, cluster.yaml asks for {wanted}; change it with: {change}")


def _error_events(aws: Aws, name: str) -> list[str]:
    sagemaker = aws.client("sagemaker")
    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=EVENT_MINUTES)
    newest = {"SortBy": "EventTime", "SortOrder": "Descending", "MaxResults": 100, "EventTimeAfter": begin}
    try:
        events = sagemaker.list_cluster_events(ClusterName=name, **newest)["Events"]
        errors = [event for event in events if event.get("EventLevel") == "Error"]
        return [_event_line(sagemaker, name, event) for event in errors[:LATEST_EVENTS]]
    except ClientError as error:  # the wait must not end because the reasons cannot be read
        return [f"cannot read the cluster's events: {error.response['Error']['Code']}"]


def _event_line(sagemaker: Any, name: str, event: dict[str, Any]) -> str:
    """The event with the failure message, which only the event's own description holds."""
    detail = sagemaker.describe_cluster_event(ClusterName=name, EventId=event["EventId"])
    metadata = detail.get("EventDetails", {}).get("EventDetails", {}).get("EventMetadata", {})
    messages = [part["FailureMessage"] for part in metadata.values() if part.get("FailureMessage")]
    where = " ".join(filter(None, (event.get("InstanceGroupName"), event.get("InstanceId"))))
    return f"{event['EventTime']:%H:%M} {where}: {'; '.join(messages) or event.get('Description', '')}"


def _failed_nodes(nodes: list[dict[str, Any]]) -> list[str]:
    return [
        f"node {node['InstanceId']} of {node['InstanceGroupName']}: {node['InstanceStatus']['Message']}"
        for node in nodes
        if node["InstanceStatus"]["Status"] == "Failure" and node["InstanceStatus"].get("Message")
    ]
