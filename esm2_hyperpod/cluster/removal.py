"""What still bills of a cluster, and its removal."""

from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.cluster import delete_cluster, find_cluster
from esm2_hyperpod.cluster.config import ClusterConfig
from esm2_hyperpod.cluster.export import ASSOCIATION, export_runs
from esm2_hyperpod.cluster.stack import delete_stack, find_stack

_GONE = ("NoSuchBucket", "404")


@dataclass(frozen=True)
class Inventory:
    """What exists in AWS under the cluster's name; resources of the stack by their name in the template."""

    cluster: dict[str, Any] | None
    stack: dict[str, Any] | None
    resources: dict[str, str]
    log_groups: list[str]
    backups: list[str]

    @property
    def exports(self) -> bool:
        """Whether /fsx/runs goes to a bucket."""
        return ASSOCIATION in self.resources

    def lines(self) -> list[str]:
        """One line for each thing that bills."""
        lines = []
        if self.cluster:
            lines += [
                f"{group['CurrentCount']} x {group['InstanceType']} ({group['InstanceGroupName']})"
                for group in self.cluster["InstanceGroups"]
            ]
        if self.stack:
            bills = {
                "FileSystem": "FSx for Lustre file system, with ALL DATA under /fsx",
                "NatGateway": "NAT gateway",
                "NatAddress": "public address",
                "LifecycleBucket": "bucket",
                "PrometheusWorkspace": "Prometheus workspace, with ALL METRICS,",
                "GrafanaWorkspace": "Grafana workspace, with its dashboards,",
            }
            lines += [f"{bills[name]} {self.resources[name]}" for name in bills if name in self.resources]
            lines.append(f"stack {self.stack['StackName']} around them ({self.stack['StackStatus']}; free)")
        lines += [f"log group {name}" for name in self.log_groups]
        return lines + [f"backup {backup} of the file system" for backup in self.backups]


def take_inventory(aws: Aws, config: ClusterConfig, file_system: str | None = None) -> Inventory:
    """Ask AWS what exists; `file_system` is the id of one that may be deleted but have left backups."""
    stack = find_stack(aws, config.stack_name)
    resources = _stack_resources(aws, config.stack_name) if stack else {}
    file_system = resources.get("FileSystem", file_system)
    return Inventory(
        cluster=find_cluster(aws, config.name),
        stack=stack,
        resources=resources,
        log_groups=_log_groups(aws, config.name),
        backups=_backups(aws, file_system) if file_system else [],
    )


def remove(
    aws: Aws, config: ClusterConfig, found: Inventory, keep_stack: bool, export: bool = True
) -> Inventory:
    """Remove the cluster and, unless `keep_stack`, all else except backups; returns what is left.

    The nodes go first, so that nothing is written any more; then /fsx/runs is exported if it has a bucket.
    """
    delete_cluster(aws, config.name)
    if not keep_stack:
        if export and found.exports and "FileSystem" in found.resources:
            export_runs(aws, found.resources["FileSystem"])
        if bucket := found.resources.get("LifecycleBucket"):
            _empty_bucket(aws, bucket)
        delete_stack(aws, config.stack_name)
        for name in found.log_groups:
            aws.client("logs").delete_log_group(logGroupName=name)
    return take_inventory(aws, config, found.resources.get("FileSystem"))


def _stack_resources(aws: Aws, name: str) -> dict[str, str]:
    resources = aws.client("cloudformation").describe_stack_resources(StackName=name)["StackResources"]
    return {
        resource["LogicalResourceId"]: resource["PhysicalResourceId"]
        for resource in resources
        if resource.get("PhysicalResourceId") and resource["ResourceStatus"] != "DELETE_COMPLETE"
    }


def _log_groups(aws: Aws, name: str) -> list[str]:
    prefix = f"/aws/sagemaker/Clusters/{name}/"
    pages = aws.client("logs").get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix)
    return [group["logGroupName"] for page in pages for group in page["logGroups"]]


def _backups(aws: Aws, file_system: str) -> list[str]:
    filters = [{"Name": "file-system-id", "Values": [file_system]}]
    pages = aws.client("fsx").get_paginator("describe_backups").paginate(Filters=filters)
    return [backup["BackupId"] for page in pages for backup in page["Backups"]]


def _empty_bucket(aws: Aws, bucket: str) -> None:
    """CloudFormation deletes only empty buckets."""
    s3 = aws.client("s3")
    try:
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            found = page.get("Versions", []) + page.get("DeleteMarkers", [])
            keys = [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in found]
            if keys:
                s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    except ClientError as error:
        if error.response["Error"]["Code"] not in _GONE:
            raise
