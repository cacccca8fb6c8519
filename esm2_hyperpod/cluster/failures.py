"""Why a cluster or a node failed: the reasons AWS keeps in four places, and where the logs are."""

from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws

LATEST_EVENTS = 5


def failure_lines(aws: Aws, cluster: dict[str, Any]) -> list[str]:
    """The cluster's own message, its error events, its failed nodes' messages, and the log to read."""
    lines = [cluster["FailureMessage"]] if cluster.get("FailureMessage") else []
    if cluster.get("NodeProvisioningMode") == "Continuous":  # AWS keeps events of no other clusters
        lines += _error_events(aws, cluster["ClusterName"])
    lines += _failed_nodes(aws, cluster["ClusterName"])
    if lines:
        lines.append(f"set-up logs of the nodes: aws logs tail {log_group(cluster)} --region {aws.region}")
    return [" ".join(line.split()) for line in lines]


def log_group(cluster: dict[str, Any]) -> str:
    """The CloudWatch log group of the nodes' set-up."""
    return f"/aws/sagemaker/Clusters/{cluster['ClusterName']}/{cluster_id(cluster)}"


def cluster_id(cluster: dict[str, Any]) -> str:
    """The id that AWS gave the cluster: the last part of its ARN."""
    return cluster["ClusterArn"].rpartition("/")[2]


def _error_events(aws: Aws, name: str) -> list[str]:
    sagemaker = aws.client("sagemaker")
    newest = {"SortBy": "EventTime", "SortOrder": "Descending", "MaxResults": 100}
    try:
        events = sagemaker.list_cluster_events(ClusterName=name, **newest)["Events"]
        errors = [event for event in events if event.get("EventLevel") == "Error"]
        return [_event_line(sagemaker, name, event) for event in errors[:LATEST_EVENTS]]
    except ClientError as error:  # reasons are a help; the want of them must not end the wait
        return [f"cannot read the cluster's events: {error.response['Error']['Code']}"]


def _event_line(sagemaker: Any, name: str, event: dict[str, Any]) -> str:
    """The event with the failure message, which only the event's own description holds."""
    detail = sagemaker.describe_cluster_event(ClusterName=name, EventId=event["EventId"])
    metadata = detail.get("EventDetails", {}).get("EventDetails", {}).get("EventMetadata", {})
    messages = [part["FailureMessage"] for part in metadata.values() if part.get("FailureMessage")]
    where = " ".join(filter(None, (event.get("InstanceGroupName"), event.get("InstanceId"))))
    return f"{event['EventTime']:%H:%M} {where}: {'; '.join(messages) or event.get('Description', '')}"


def _failed_nodes(aws: Aws, name: str) -> list[str]:
    sagemaker = aws.client("sagemaker")
    pages = sagemaker.get_paginator("list_cluster_nodes").paginate(ClusterName=name)
    return [
        f"node {node['InstanceId']} of {node['InstanceGroupName']}: {node['InstanceStatus']['Message']}"
        for page in pages
        for node in page["ClusterNodeSummaries"]
        if node["InstanceStatus"]["Status"] == "Failure" and node["InstanceStatus"].get("Message")
    ]
