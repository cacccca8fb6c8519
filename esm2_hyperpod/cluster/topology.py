"""The rules of a HyperPod Slurm request that join several fields, which no schema knows."""

from collections import Counter
from typing import Any

from esm2_hyperpod.errors import problem


def topology_problems(request: dict[str, Any]) -> list[str]:
    """One line for each cross-field rule that a CreateCluster `request`, well-formed itself, breaks."""
    groups = request.get("InstanceGroups", [])
    problems = _node_types(groups) + _group_names(groups) + _instance_choice(groups)
    for index, group in enumerate(groups):
        problems += _partitions(f"InstanceGroups[{index}]", group)
        problems += _lifecycle(f"InstanceGroups[{index}]", group)
        problems += _storage(f"InstanceGroups[{index}]", group)
    if "Slurm" not in request.get("Orchestrator", {}):
        wrong = "SlurmConfig on the groups needs the Slurm orchestrator"
        problems.append(problem("Orchestrator", request.get("Orchestrator"), wrong, "set Orchestrator.Slurm"))
    if not request.get("VpcConfig"):
        problems.append(problem("VpcConfig", None, "FSx and EFA need a VPC", "add VpcConfig"))
    return problems


def _node_type(group: dict[str, Any]) -> str | None:
    return group.get("SlurmConfig", {}).get("NodeType")


def _node_types(groups: list[dict[str, Any]]) -> list[str]:
    count = Counter(_node_type(group) for group in groups)
    field = "InstanceGroups[].SlurmConfig.NodeType"
    problems = []
    if count[None]:
        problems.append(problem(field, None, f"is missing in {count[None]} groups", "set it in each group"))
    if count["Controller"] != 1:
        wrong = f"{count['Controller']} groups are Controller"
        problems.append(problem(field, "Controller", wrong, "make exactly one group the controller"))
    if count["Login"] > 1:
        problems.append(problem(field, "Login", f"{count['Login']} groups are Login", "keep one at most"))
    if not count["Compute"]:
        problems.append(problem(field, "Compute", "no group is Compute", "add a group of workers"))
    problems += [
        problem(f"{group['InstanceGroupName']}.InstanceCount", group["InstanceCount"], wrong, "set it to 1")
        for group in groups
        if _node_type(group) == "Controller" and group["InstanceCount"] != 1
        for wrong in ["the controller is one node"]
    ]
    return problems


def _group_names(groups: list[dict[str, Any]]) -> list[str]:
    count = Counter(group.get("InstanceGroupName") for group in groups)
    field = "InstanceGroups[].InstanceGroupName"
    return [
        problem(field, name, f"names {n} groups", "give each group its own name")
        for name, n in count.items()
        if n > 1
    ]


def _instance_choice(groups: list[dict[str, Any]]) -> list[str]:
    return [
        problem(
            f"InstanceGroups[{index}].InstanceType",
            group.get("InstanceType"),
            "exactly one of InstanceType and InstanceRequirements must be given",
            "keep InstanceType",
        )
        for index, group in enumerate(groups)
        if ("InstanceType" in group) == ("InstanceRequirements" in group)
    ]


def _partitions(path: str, group: dict[str, Any]) -> list[str]:
    names = group.get("SlurmConfig", {}).get("PartitionNames")
    if names and _node_type(group) != "Compute":
        field = f"{path}.SlurmConfig.PartitionNames"
        return [problem(field, names, "only compute groups are in partitions", "remove it from this group")]
    return []


def _lifecycle(path: str, group: dict[str, Any]) -> list[str]:
    scripts = group.get("LifeCycleConfig")
    if scripts is None:
        return []
    problems = []
    uri = scripts.get("SourceS3Uri")
    if not str(uri).startswith("s3://sagemaker-"):
        wrong = "the lifecycle bucket's name must start with sagemaker-"
        problems.append(problem(f"{path}.LifeCycleConfig.SourceS3Uri", uri, wrong, "move the scripts"))
    if "OnInitComplete" not in scripts:
        wrong = "OnCreate replaces the set-up of Slurm that comes with the image"
        remedy = "use OnInitComplete, which runs after it"
        problems.append(problem(f"{path}.LifeCycleConfig", scripts, wrong, remedy))
    elif "OnCreate" in scripts:
        remedy = "keep OnInitComplete"
        problems.append(problem(f"{path}.LifeCycleConfig", scripts, "has OnCreate as well", remedy))
    return problems


def _storage(path: str, group: dict[str, Any]) -> list[str]:
    storage = group.get("InstanceStorageConfigs", [])
    field = f"{path}.InstanceStorageConfigs"
    problems = []
    if not any("FsxLustreConfig" in item for item in storage):
        wrong = "this group would not see the shared file system"
        problems.append(problem(field, storage, wrong, "add the FsxLustreConfig the other groups have"))
    mounts = Counter(
        config.get("MountPath") for item in storage for kind, config in item.items() if kind.startswith("Fsx")
    )
    problems += [
        problem(field, mount, "is mounted twice", "give each file system its own MountPath")
        for mount, n in mounts.items()
        if n > 1
    ]
    if any(len(item) != 1 for item in storage):
        problems.append(problem(field, storage, "each entry is one kind of storage", "split the entry"))
    return problems
