"""The rules for `cluster.yaml` beyond names and types: places, machines, storage, addresses.

Each function returns one line for each mistake it finds. None contacts AWS.
"""

import difflib
import functools
import ipaddress
import re
from pathlib import Path

import botocore.session

from esm2_hyperpod import instances
from esm2_hyperpod.cluster.config import MAIN_GROUP, MAIN_PARTITION, ClusterConfig, Workers
from esm2_hyperpod.cluster.schema import accepted_types
from esm2_hyperpod.cluster.ssh import is_public_key
from esm2_hyperpod.errors import problem

# A bucket name holds "sagemaker-", this name, the account, the region and 63 characters at most.
LONGEST_NAME = 25
# One node takes an address for itself and one for each EFA device; p5 has the most, 32.
ADDRESSES_WITHOUT_EFA = 1
# AWS reserves five addresses of each subnet; FSx, controller, login and NAT take some more.
RESERVED_ADDRESSES = 16
# Groups of ours, the partition of `workers`, and the one that HyperPod makes for all nodes.
TAKEN_NAMES = ("controller", "login", MAIN_GROUP, MAIN_PARTITION, "dev")
TAKEN_USERS = ("root", "ubuntu", "ssm-user", "slurm", "munge")
TAKEN_FOLDERS = ("data", "runs", "csv", "processed")
# AWS's add-users extension counts from 2001, too; Debian's accounts of people end at 59999.
USER_IDS = range(2001, 60_000)
# What `observability` asks for, by the names of botocore.
SERVICES_OF = {"prometheus": ["amp"], "grafana": ["amp", "grafana"]}
DOCKER_BRIDGE = ipaddress.ip_network("172.17.0.0/16")
PRIVATE_RANGES = [ipaddress.ip_network(r) for r in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]


def config_problems(config: ClusterConfig) -> list[str]:
    """Every mistake in a configuration whose names and types are right."""
    checks = (
        _name,
        _place,
        _machines,
        _storage,
        _addresses,
        _lifecycle_script,
        _arns,
        _tags,
        _budget,
        _users,
        _observability,
    )
    return [line for check in checks for line in check(config)]


def subnets(vpc_cidr: str) -> tuple[str, str]:
    """The private subnet (the lower half of the range) and the public one (16 addresses) for NAT."""
    lower, upper = ipaddress.ip_network(vpc_cidr).subnets(prefixlen_diff=1)
    return str(lower), str(next(upper.subnets(new_prefix=28)))


def _name(config: ClusterConfig) -> list[str]:
    name = config.name
    if re.fullmatch("[a-z0-9](-?[a-z0-9])*", name) and len(name) <= LONGEST_NAME:
        return []
    wrong = "becomes part of a bucket's name, which does not allow it"
    remedy = f"use at most {LONGEST_NAME} lower-case letters, digits and single hyphens between them"
    return [problem("name", name, wrong, remedy)]


def _place(config: ClusterConfig) -> list[str]:
    region, zone = config.region, config.availability_zone
    if region not in _regions():
        close = difflib.get_close_matches(region, _regions(), n=1)
        remedy = f"did you mean {close[0]}?" if close else "use one such as us-west-2"
        return [problem("region", region, "SageMaker has no such region", remedy)]
    if not re.fullmatch(re.escape(region) + "[a-z]", zone):
        wrong = f"is not a zone of {region}"
        return [problem("availability_zone", zone, wrong, f"use the region and a letter, as {region}a")]
    return []


@functools.cache
def _regions(service: str = "sagemaker") -> list[str]:
    """Where the installed botocore says a service is, in all partitions."""
    session = botocore.session.get_session()
    partitions = session.get_available_partitions()
    return [r for p in partitions for r in session.get_available_regions(service, p)]


def _machines(config: ClusterConfig) -> list[str]:
    problems = []
    groups = {"controller": config.controller, "login": config.login}
    groups |= {config.field_of(name): group for name, group in config.worker_groups.items()}
    known = {}
    for name, group in groups.items():
        if group is None:
            continue
        field = f"{name}.instance_type"
        if group.instance_type not in accepted_types():
            close = difflib.get_close_matches(group.instance_type, accepted_types(), n=1)
            remedy = f"did you mean {close[0]}?" if close else "use one such as ml.g5.24xlarge"
            problems.append(problem(field, group.instance_type, "HyperPod has no such type", remedy))
            continue
        known[name] = group.instance_type
        if name == "workers" and not instances.has_gpu(group.instance_type):
            problems.append(problem(field, group.instance_type, "has no NVIDIA GPU", "use a g or p type"))
        if name in ("controller", "login") and instances.has_gpu(group.instance_type):
            wrong = "would pay for GPUs on a node that does not train"
            problems.append(problem(field, group.instance_type, wrong, "use one such as ml.m5.xlarge"))
    if len({instances.is_arm(instance_type) for instance_type in known.values()}) > 1:
        wrong = "mix Arm and x86 processors, which cannot share one Python environment on /fsx"
        remedy = "use types of one processor for all groups"
        problems.append(problem("instance_type of the groups", ", ".join(known.values()), wrong, remedy))
    for name in config.other_workers:
        # The service model's ClusterInstanceGroupName and ClusterPartitionNames.
        if not re.fullmatch("[a-zA-Z0-9](-*[a-zA-Z0-9])*", name) or len(name) > 63 or name in TAKEN_NAMES:
            remedy = f"use letters, digits and hyphens between them, and none of {', '.join(TAKEN_NAMES)}"
            problems.append(
                problem("other_workers", name, "cannot be a group's and a partition's name", remedy)
            )
    counts = (_counts(config, name, group) for name, group in config.worker_groups.items())
    return problems + [line for lines in counts for line in lines]


def _counts(config: ClusterConfig, name: str, group: Workers) -> list[str]:
    """How many workers; the service model's ClusterInstanceCount begins at 0, a cluster that trains nothing.

    `min_count` is described in AWS's page "Continuous provisioning for enhanced cluster operations with
    Slurm", "Minimum capacity requirements (MinCount)": MinCount <= CurrentCount <= TargetCount.
    """
    count, least, field = group.count, group.min_count, config.field_of(name)
    problems = []
    if count < 0:
        wrong, remedy = "is not a number of nodes", "write 0 or more; 0 pays for no GPU"
        problems.append(problem(f"{field}.count", count, wrong, remedy))
    if least is None:
        return problems
    if not config.options.continuous_provisioning:
        wrong = "works only with options.continuous_provisioning: true; without it, all workers come or none"
        problems.append(problem(f"{field}.min_count", least, wrong, "write null"))
    elif not 1 <= least <= count:
        wrong = f"is not between 1 and {field}.count = {count}"
        problems.append(problem(f"{field}.min_count", least, wrong, "correct it, or write null"))
    return problems


def _storage(config: ClusterConfig) -> list[str]:
    problems = []
    size, throughput = config.fsx.size_gb, config.fsx.throughput
    if size <= 0 or (size != 1200 and size % 2400):
        nearest = 1200 if size <= 1200 else -(-size // 2400) * 2400
        remedy = f"the next size up is {nearest}"
        problems.append(problem("fsx.size_gb", size, "FSx offers 1200 and multiples of 2400", remedy))
    if throughput not in (125, 250, 500, 1000):
        wrong = "is not a throughput that FSx offers"
        problems.append(problem("fsx.throughput", throughput, wrong, "use 125, 250, 500 or 1000"))
    bucket = config.fsx.data_bucket
    if bucket is not None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            remedy = "use its name only, as in `aws s3 ls`, without s3:// and folders"
            problems.append(problem("fsx.data_bucket", bucket, "is not the name of a bucket", remedy))
        elif bucket.startswith(f"sagemaker-{config.name}-"):
            wrong = "is the cluster's own bucket, which `delete` empties and removes"
            problems.append(problem("fsx.data_bucket", bucket, wrong, "use another"))
    for name, group in config.worker_groups.items():
        disk = group.local_disk_gb
        if disk is not None and not 1 <= disk <= 16384:  # the service model's ClusterEbsVolumeSizeInGB
            field, wrong = f"{config.field_of(name)}.local_disk_gb", "is not a size that EBS offers"
            problems.append(problem(field, disk, wrong, "use 1 to 16384, or null for none"))
    return problems


def _addresses(config: ClusterConfig) -> list[str]:
    cidr, field = config.options.vpc_cidr, "options.vpc_cidr"
    try:
        network = ipaddress.IPv4Network(cidr)
    except ValueError as error:
        return [problem(field, cidr, f"is not an address range ({error})", "use one such as 10.1.0.0/16")]
    if not any(network.subnet_of(private) for private in PRIVATE_RANGES):
        return [problem(field, cidr, "is not a private range", "use one such as 10.1.0.0/16")]
    if not 16 <= network.prefixlen <= 24:
        return [problem(field, cidr, "AWS and two subnets need /16 to /24", "use one such as 10.1.0.0/16")]
    if network.overlaps(DOCKER_BRIDGE):
        wrong = f"overlaps {DOCKER_BRIDGE}, which Docker uses on each node"
        return [problem(field, cidr, wrong, "use one such as 10.1.0.0/16")]
    left = network.num_addresses // 2 - RESERVED_ADDRESSES
    for name, group in config.worker_groups.items():
        efa = instances.efa_devices(group.instance_type)
        if efa is None:
            efa = 32 if instances.has_gpu(group.instance_type) else 1
        each = ADDRESSES_WITHOUT_EFA + efa
        most = max(left, 0) // each
        if group.count > most:
            wrong = f"{cidr} has addresses for {most} such nodes at most"
            remedy = "lower it, or widen options.vpc_cidr"
            return [problem(f"{config.field_of(name)}.count", group.count, wrong, remedy)]
        left -= each * group.count
    return []


def _lifecycle_script(config: ClusterConfig) -> list[str]:
    script, field = config.options.on_init_complete, "options.on_init_complete"
    if script is None:
        return []
    if script.startswith("s3://"):
        bucket = f"sagemaker-{config.name}-ACCOUNT-{config.region}"
        if re.fullmatch(f"s3://{re.escape(bucket).replace('ACCOUNT', '[0-9]{12}')}(/[^/]+){{2,}}", script):
            return []
        remedy = f"use s3://{bucket}/FOLDER/SCRIPT"
        return [problem(field, script, "the nodes may only read their own bucket", remedy)]
    path = config.folder / script
    if not path.is_file():
        return [problem(field, script, f"there is no file {path}", "correct the path, or write null")]
    if not path.read_bytes().startswith(b"#!"):
        return [problem(field, script, "does not start with #!", "make #!/bin/bash its first line")]
    if Path(script).name == "provisioning_parameters.json":
        return [problem(field, script, "is the legacy topology file", "give a shell script")]
    return []


def _arns(config: ClusterConfig) -> list[str]:
    problems = []
    for name, group in config.worker_groups.items():
        arn, field = group.training_plan_arn, f"{config.field_of(name)}.training_plan_arn"
        form = rf"arn:aws[a-z-]*:sagemaker:{re.escape(config.region)}:\d{{12}}:training-plan/[\w-]+"
        if arn is not None and not re.fullmatch(form, arn):
            remedy = f"use arn:aws:sagemaker:{config.region}:ACCOUNT:training-plan/NAME"
            problems.append(problem(field, arn, f"is not a training-plan of {config.region}", remedy))
    return problems


def _observability(config: ClusterConfig) -> list[str]:
    wanted, field = config.observability, "observability"
    if wanted is None:
        return []
    if wanted not in SERVICES_OF:
        return [problem(field, wanted, "is not known", "write prometheus, grafana, or null for none")]
    problems = []
    for service in SERVICES_OF[wanted]:
        if config.region in _regions() and config.region not in _regions(service):
            remedy = "write null" if service == "amp" else "write prometheus, and use a Grafana of your own"
            return [problem(field, wanted, f"AWS has no {service} in {config.region}", remedy)]
    if not _our_script(config):
        wrong = "starts no exporters, which a file beside cluster.yaml must do on each new node"
        remedy = "write on_init_complete.sh, or observability: null"
        problems.append(problem("options.on_init_complete", config.options.on_init_complete, wrong, remedy))
    return problems


def _tags(config: ClusterConfig) -> list[str]:
    return [
        problem(f"options.tags.{key}", value, "AWS reserves the prefix aws:", "rename the tag")
        for key, value in config.options.tags.items()
        if key.lower().startswith("aws:")
    ]


def _budget(config: ClusterConfig) -> list[str]:
    problems = []
    if budget := config.budget:
        if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", budget.email):
            wrong, remedy = "is not an e-mail address", "write one such as you@example.org"
            problems.append(problem("budget.email", budget.email, wrong, remedy))
        if budget.usd_per_month < 1:
            wrong, remedy = "is not an amount", "write whole USD, such as 500"
            problems.append(problem("budget.usd_per_month", budget.usd_per_month, wrong, remedy))
    return problems


def _users(config: ClusterConfig) -> list[str]:
    problems, owners = [], {}
    for name, user in config.users.items():
        field = f"users.{name}"
        if not re.fullmatch("[a-z][a-z0-9-]{0,30}", name) or name in (*TAKEN_USERS, *TAKEN_FOLDERS):
            remedy = (
                f"use lower-case letters and digits, and none of {', '.join(TAKEN_USERS + TAKEN_FOLDERS)}"
            )
            problems.append(
                problem("users", name, "cannot be the name of a user and a folder in /fsx", remedy)
            )
        if user.uid not in USER_IDS:
            remedy = f"use one from {USER_IDS[0]} to {USER_IDS[-1]}"
            problems.append(problem(f"{field}.uid", user.uid, "is not a user's number", remedy))
        elif owners.setdefault(user.uid, name) != name:
            wrong = f"is the number of {owners[user.uid]}, too, who would own the same files"
            problems.append(problem(f"{field}.uid", user.uid, wrong, "give each a number of their own"))
        if not is_public_key(user.key):
            remedy = "copy the line from ~/.ssh/id_ed25519.pub"
            problems.append(problem(f"{field}.key", user.key, "is not an SSH public key", remedy))
    if config.users and not _our_script(config):
        wrong = "makes no users, which a file beside cluster.yaml must do on each new node"
        remedy = "write on_init_complete.sh, or users: {}"
        problems.append(problem("options.on_init_complete", config.options.on_init_complete, wrong, remedy))
    return problems


def _our_script(config: ClusterConfig) -> bool:
    """Whether the nodes run a script that hyperpod.py uploads, with what belongs to it."""
    script = config.options.on_init_complete
    return script is not None and not script.startswith("s3://")
