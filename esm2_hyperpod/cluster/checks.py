"""All checks that need no AWS: the file, the rules, the rendered request against model and topology."""

import re
from pathlib import Path
from typing import Any

from esm2_hyperpod.cluster.config import ClusterConfig, load_config
from esm2_hyperpod.cluster.request import StackOutputs, create_cluster_request, example_outputs
from esm2_hyperpod.cluster.rules import config_problems
from esm2_hyperpod.cluster.schema import request_problems
from esm2_hyperpod.cluster.topology import topology_problems
from esm2_hyperpod.errors import UserError

# Where in cluster.yaml a part of the request comes from; "workers" stands for the group's own name.
_FIELD_OF = [
    (r"ClusterName", "name"),
    (r"InstanceGroups\[(\d+)\]\.InstanceType", "workers.instance_type"),
    (r"InstanceGroups\[(\d+)\]\.InstanceCount", "workers.count"),
    (r"InstanceGroups\[(\d+)\]\.TrainingPlanArn", "workers.training_plan_arn"),
    (r"InstanceGroups\[(\d+)\]\.InstanceStorageConfigs.*VolumeSizeInGB", "workers.local_disk_gb"),
    (r"InstanceGroups\[(\d+)\]\.LifeCycleConfig\.\w+", "options.on_init_complete"),
    (r"NodeRecovery", "options.node_recovery"),
    (r"Tags(\[\d+\]\.\w+)?", "options.tags"),
]


def check_request(request: dict[str, Any]) -> list[str]:
    """One line for each mistake in a CreateCluster request, whoever wrote it."""
    return request_problems("CreateCluster", request) or topology_problems(request)


def read_config(path: Path) -> ClusterConfig:
    """The configuration in `path`, its names and types checked.

    Enough to look at a cluster or remove it, which must not wait for a mistake elsewhere to be mended.
    Raises `UserError` listing every mistake, one a line.
    """
    config, problems = load_config(path)
    _refuse(path, problems)
    return config


def checked_config(path: Path) -> ClusterConfig:
    """The configuration in `path`, fit to make a cluster of; raises `UserError` as `read_config` does."""
    config = read_config(path)
    problems = config_problems(config)
    seen = {line.partition(" = ")[0] for line in problems}
    for line in check_request(create_cluster_request(config, example_outputs(config))):
        line = _in_terms_of_file(line, config)
        field = line.partition(" = ")[0]
        if field not in seen:
            seen.add(field)
            problems.append(line)
    _refuse(path, problems)
    return config


def checked_request(config: ClusterConfig, stack: StackOutputs) -> dict[str, Any]:
    """The request to send; raises `UserError` where what the stack gave makes it unfit."""
    request = create_cluster_request(config, stack)
    if problems := check_request(request):
        raise UserError(f"the request is not valid, nothing was sent: {'; '.join(problems)}")
    return request


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        count = f"{len(problems)} mistakes" if len(problems) > 1 else "1 mistake"
        listed = "".join(f"\n  {line}" for line in problems)
        raise UserError(f"{path}: {count}; nothing was created or changed{listed}")


def _in_terms_of_file(line: str, config: ClusterConfig) -> str:
    path, separator, rest = line.partition(" = ")
    for pattern, field in _FIELD_OF:
        if match := re.fullmatch(pattern, path):
            if field.startswith("workers.") and match[1] == "0":
                field = field.replace("workers", "controller")
            elif field.startswith("workers.") and match[1] == "1" and config.login:
                field = field.replace("workers", "login")
            return field + separator + rest
    return line
