"""Render the CreateCluster request from `cluster.yaml` and the outputs of the stack."""

from dataclasses import dataclass
from typing import Any

from esm2_hyperpod import instances
from esm2_hyperpod.cluster.config import MAIN_GROUP, MAIN_PARTITION, ClusterConfig

MOUNT_PATH = "/fsx"
LIFECYCLE_PREFIX = "lifecycle"
DEEP_HEALTH_CHECKS = ["InstanceStress", "InstanceConnectivity"]


@dataclass(frozen=True)
class StackOutputs:
    """The outputs of `network_and_storage.yaml`, by their names there; empty for what was not asked for."""

    VpcId: str
    SubnetId: str
    SecurityGroupId: str
    ExecutionRoleArn: str
    LifecycleBucket: str
    FsxId: str
    FsxDnsName: str
    FsxMountName: str
    PrometheusEndpoint: str = ""
    GrafanaEndpoint: str = ""


def example_outputs(config: ClusterConfig) -> StackOutputs:
    """Well-formed values for what does not exist yet, so that `plan` can render and check a request."""
    return StackOutputs(
        VpcId="vpc-00000000000000000",
        SubnetId="subnet-00000000000000000",
        SecurityGroupId="sg-00000000000000000",
        ExecutionRoleArn=f"arn:aws:iam::000000000000:role/{config.stack_name}",
        LifecycleBucket=f"sagemaker-{config.name}-000000000000-{config.region}",
        FsxId="fs-00000000000000000",
        FsxDnsName=f"fs-00000000000000000.fsx.{config.region}.amazonaws.com",
        FsxMountName="xxxxxxxx",
    )


def create_cluster_request(config: ClusterConfig, stack: StackOutputs) -> dict[str, Any]:
    """The CreateCluster request: one controller, perhaps one login node, and the workers."""
    groups = [_group("controller", config.controller.instance_type, 1, "Controller", config, stack)]
    if config.login:
        groups.append(_group("login", config.login.instance_type, 1, "Login", config, stack))
    groups += [_worker_group(name, config, stack) for name in config.worker_groups]
    request = {
        "ClusterName": config.name,
        "InstanceGroups": groups,
        "VpcConfig": {"SecurityGroupIds": [stack.SecurityGroupId], "Subnets": [stack.SubnetId]},
        "Orchestrator": {"Slurm": {"SlurmConfigStrategy": "Managed"}},
        "NodeRecovery": config.options.node_recovery,
    }
    if config.options.continuous_provisioning:
        request["NodeProvisioningMode"] = "Continuous"
        # The API refuses any SlurmConfigStrategy here: AWS's page "Continuous provisioning for enhanced
        # cluster operations with Slurm", "Slurm configuration management".
        request["Orchestrator"] = {"Slurm": {}}
    if config.options.tags:
        request["Tags"] = [{"Key": key, "Value": value} for key, value in config.options.tags.items()]
    return request


def _worker_group(name: str, config: ClusterConfig, stack: StackOutputs) -> dict[str, Any]:
    workers = config.worker_groups[name]
    group = _group(name, workers.instance_type, workers.count, "Compute", config, stack)
    group["SlurmConfig"]["PartitionNames"] = [MAIN_PARTITION if name == MAIN_GROUP else name]
    if workers.min_count is not None:
        group["MinInstanceCount"] = workers.min_count
    if workers.local_disk_gb is not None:
        group["InstanceStorageConfigs"].append({"EbsVolumeConfig": {"VolumeSizeInGB": workers.local_disk_gb}})
    if config.options.deep_health_checks and instances.has_gpu(workers.instance_type):
        group["OnStartDeepHealthChecks"] = DEEP_HEALTH_CHECKS
    if workers.training_plan_arn:
        group["TrainingPlanArn"] = workers.training_plan_arn
    return group


def _group(
    name: str, instance_type: str, count: int, node_type: str, config: ClusterConfig, stack: StackOutputs
) -> dict[str, Any]:
    group = {
        "InstanceGroupName": name,
        "InstanceType": instance_type,
        "InstanceCount": count,
        "ExecutionRole": stack.ExecutionRoleArn,
        "SlurmConfig": {"NodeType": node_type},
        "InstanceStorageConfigs": [
            {
                "FsxLustreConfig": {
                    "DnsName": stack.FsxDnsName,
                    "MountName": stack.FsxMountName,
                    "MountPath": MOUNT_PATH,
                }
            }
        ],
    }
    script = config.options.on_init_complete
    if script:
        folder, file_name = lifecycle_location(script, stack.LifecycleBucket)
        group["LifeCycleConfig"] = {"SourceS3Uri": folder, "OnInitComplete": file_name}
    return group


def lifecycle_location(script: str, bucket: str) -> tuple[str, str]:
    """The S3 folder and file name of `options.on_init_complete`, a local path or an s3:// address."""
    if script.startswith("s3://"):
        folder, _, name = script.rpartition("/")
        return folder, name
    return f"s3://{bucket}/{LIFECYCLE_PREFIX}", script.rpartition("/")[2]
