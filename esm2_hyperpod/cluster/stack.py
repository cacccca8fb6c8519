"""The CloudFormation stack of network, storage, role and bucket: make it, fill it, read it, remove it."""

import dataclasses
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws, wait_until
from esm2_hyperpod.cluster.config import ClusterConfig
from esm2_hyperpod.cluster.observability import node_files
from esm2_hyperpod.cluster.request import StackOutputs, lifecycle_location
from esm2_hyperpod.cluster.rules import subnets
from esm2_hyperpod.errors import UserError

USABLE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE")
# Creation failed: CloudFormation has undone it, and accepts nothing but its deletion.
DEAD = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
CREATE_MINUTES = 60
# Can be changed without touching network or data; with the value that means "none", as in a stack of before.
CHANGEABLE = {"Observability": "", "BudgetEmail": "", "BudgetUsd": "0", "DataBucket": ""}
USERS_FILE = "users.txt"
LEGACY_TOPOLOGY = "provisioning_parameters.json"


def find_stack(aws: Aws, name: str) -> dict[str, Any] | None:
    """CloudFormation's description of the stack, or None where there is none."""
    try:
        return aws.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        if "does not exist" in error.response["Error"]["Message"]:
            return None
        raise


def outputs(stack: dict[str, Any]) -> StackOutputs:
    """The outputs of a finished stack; raises `UserError` if some are missing."""
    values = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    fields = dataclasses.fields(StackOutputs)
    names = {field.name for field in fields}
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if missing := needed - values.keys():
        raise UserError(
            f"stack {stack['StackName']}: has no output {', '.join(sorted(missing))}, so another tool "
            "made it; choose another name in cluster.yaml"
        )
    return StackOutputs(**{name: value for name, value in values.items() if name in names})


def ensure_stack(aws: Aws, config: ClusterConfig, template: Path) -> StackOutputs:
    """Make the stack, or resume with the existing one; returns its outputs once it is complete.

    Raises `UserError` if it failed, with the first reason, or if it was made for other options.
    """
    stack = find_stack(aws, config.stack_name)
    if stack and stack["StackStatus"] in DEAD:
        print(
            f"stack {config.stack_name} failed before ({stack['StackStatus']}): removing what is left of it"
        )
        delete_stack(aws, config.stack_name)
        stack = None
    if stack and stack["StackStatus"] == "DELETE_IN_PROGRESS":
        _wait_deleted(aws, stack["StackId"])
        stack = None
    if stack is None:
        print(f"making stack {config.stack_name}: network, file system, role, bucket (about 15 minutes)")
        aws.client("cloudformation").create_stack(**_arguments(config, template))
    else:
        print(f"stack {config.stack_name} exists: {stack['StackStatus']}")
    changed = bool(stack) and _changed_permissions(config, stack)
    wait_until(lambda: _observe_creation(aws, config.stack_name), CREATE_MINUTES)
    if changed:
        aws.client("cloudformation").update_stack(**_arguments(config, template))
        wait_until(lambda: _observe_creation(aws, config.stack_name), CREATE_MINUTES)
    return outputs(find_stack(aws, config.stack_name))


def parameters(config: ClusterConfig) -> dict[str, str]:
    """The template's parameters for this configuration."""
    private, public = subnets(config.options.vpc_cidr)
    return {
        "ClusterName": config.name,
        "AvailabilityZone": config.availability_zone,
        "VpcCidr": config.options.vpc_cidr,
        "PrivateCidr": private,
        "PublicCidr": public,
        "FsxSizeGb": str(config.fsx.size_gb),
        "FsxThroughput": str(config.fsx.throughput),
        "Observability": config.observability or "",
        "DataBucket": config.fsx.data_bucket or "",
        "BudgetEmail": config.budget.email if config.budget else "",
        "BudgetUsd": str(config.budget.usd_per_month if config.budget else 0),
    }


def upload_script(aws: Aws, config: ClusterConfig, made: StackOutputs) -> None:
    """Upload `options.on_init_complete` and what it reads, or check that the script already in S3 is there.

    Raises `UserError` if it is missing, or if the legacy topology file is beside it: HyperPod refuses a
    cluster that has both that file and SlurmConfig.
    """
    script = config.options.on_init_complete
    if script is None:
        return
    folder, name = lifecycle_location(script, made.LifecycleBucket)
    bucket_name, _, prefix = folder.removeprefix("s3://").partition("/")
    s3 = aws.client("s3")
    if not script.startswith("s3://"):
        files = {name: (config.folder / script).read_bytes(), USERS_FILE: users_file(config).encode()}
        for key, content in (node_files(config, made) | files).items():
            s3.put_object(Bucket=bucket_name, Key=f"{prefix}/{key}", Body=content)
        print(f"uploaded {script} to {folder}/{name}, and {len(config.users)} users beside it")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket_name, Prefix=f"{prefix}/")
    keys = {item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])}
    if name not in keys:
        raise UserError(f"{script}: there is no such object; upload it, or correct options.on_init_complete")
    if LEGACY_TOPOLOGY in keys:
        raise UserError(
            f"{folder}/{LEGACY_TOPOLOGY}: this cluster must not have the legacy topology file; "
            f"remove it with: aws s3 rm {folder}/{LEGACY_TOPOLOGY}"
        )


def users_file(config: ClusterConfig) -> str:
    """What on_init_complete.sh reads on each new node: a name, a number and a key on each line."""
    return "".join(f"{name} {user.uid} {user.key.strip()}\n" for name, user in config.users.items())


def delete_stack(aws: Aws, name: str) -> None:
    """Delete the stack and wait for it; raises `UserError` with the reason if it cannot be deleted."""
    stack = find_stack(aws, name)
    if stack is None:
        return
    aws.client("cloudformation").delete_stack(StackName=name)
    _wait_deleted(aws, stack["StackId"])


def _arguments(config: ClusterConfig, template: Path) -> dict[str, Any]:
    return {
        "StackName": config.stack_name,
        "TemplateBody": template.read_text(encoding="utf-8"),
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": value} for key, value in parameters(config).items()
        ],
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": [{"Key": key, "Value": value} for key, value in config.options.tags.items()],
    }


def would_lose_metrics(config: ClusterConfig, stack: dict[str, Any]) -> bool:
    """Whether an update of the stack would remove its Prometheus workspace."""
    made_with = {p["ParameterKey"]: p["ParameterValue"] for p in stack.get("Parameters", [])}
    return bool(made_with.get("Observability")) and not config.observability


def _changed_permissions(config: ClusterConfig, stack: dict[str, Any]) -> bool:
    """Whether the stack must be updated; raises `UserError` for a change that could lose data."""
    made_with = {p["ParameterKey"]: p["ParameterValue"] for p in stack.get("Parameters", [])}
    asked = parameters(config)
    changed = {key for key, value in asked.items() if made_with.get(key, CHANGEABLE.get(key)) != value}
    if fixed := sorted(changed - CHANGEABLE.keys()):
        differences = ", ".join(f"{key}={made_with.get(key)} (now {asked[key]})" for key in fixed)
        raise UserError(
            f"stack {config.stack_name} was made with {differences}; changing that in place could lose data: "
            "set cluster.yaml back, or give the new cluster another name"
        )
    return bool(changed)


def _observe_creation(aws: Aws, name: str) -> tuple[str, bool]:
    stack = find_stack(aws, name)
    status = stack["StackStatus"] if stack else "gone"
    if status in USABLE:
        return f"stack {name}: {status}", True
    if not status.endswith("IN_PROGRESS") or "ROLLBACK" in status or "DELETE" in status:
        reason = _first_failure(aws, name)
        raise UserError(f"stack {name}: {status}: {reason}; correct the cause and run the same command again")
    resources = aws.client("cloudformation").describe_stack_resources(StackName=name)["StackResources"]
    made = sum(resource["ResourceStatus"] == "CREATE_COMPLETE" for resource in resources)
    return f"stack {name}: {made} of {len(resources)} started resources are ready", False


def _first_failure(aws: Aws, name: str) -> str:
    """The resource that failed first, and why; the later ones were only cancelled."""
    pages = aws.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=name)
    failures = [
        f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', 'no reason given')}"
        for page in pages
        for event in page["StackEvents"]
        if event["ResourceStatus"].endswith("_FAILED")
    ]
    return failures[-1] if failures else "CloudFormation gives no reason"  # newest come first


def _wait_deleted(aws: Aws, stack_id: str) -> None:
    wait_until(lambda: _observe_deletion(aws, stack_id), CREATE_MINUTES)


def _observe_deletion(aws: Aws, stack_id: str) -> tuple[str, bool]:
    stack = find_stack(aws, stack_id)  # by id: a deleted stack's name finds nothing, its id still does
    if stack is None or stack["StackStatus"] == "DELETE_COMPLETE":
        return "stack: deleted", True
    if stack["StackStatus"] == "DELETE_FAILED":
        reason = _first_failure(aws, stack_id)
        raise UserError(
            f"stack {stack['StackName']}: could not be deleted and still bills: {reason}; nodes may "
            "still be leaving the network: run `hyperpod.py delete` again in ten minutes, and if that fails, "
            "first remove that resource in the AWS console"
        )
    return f"stack: {stack['StackStatus']}", False
