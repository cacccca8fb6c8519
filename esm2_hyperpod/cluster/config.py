"""Read `cluster.yaml`, the one file a user edits: its fields, their types and defaults.

This module checks names and types of the fields; `rules` checks what they mean.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from esm2_hyperpod.errors import UserError, problem
from esm2_hyperpod.file_kinds import kind_of

MAIN_GROUP = "workers"
MAIN_PARTITION = "train"


@dataclass(frozen=True)
class Workers:
    """The nodes that train; `local_disk_gb` is an EBS volume on each, mounted at /opt/sagemaker, if any."""

    instance_type: str = "ml.g5.24xlarge"
    count: int = 2
    min_count: int | None = None
    local_disk_gb: int | None = None
    training_plan_arn: str | None = None


@dataclass(frozen=True)
class Controller:
    """The node that runs slurmctld."""

    instance_type: str = "ml.m5.xlarge"


@dataclass(frozen=True)
class Login:
    """A node to log in to; without one, users work on the controller."""

    instance_type: str = "ml.m5.xlarge"


@dataclass(frozen=True)
class Fsx:
    """The shared file system at /fsx: capacity in GiB, throughput in MB/s for each TiB of it.

    `data_bucket` is the bucket that /fsx/data comes from and /fsx/runs goes to, if any.
    """

    size_gb: int = 1200
    throughput: int = 250
    data_bucket: str | None = None


@dataclass(frozen=True)
class User:
    """Somebody with an account on all nodes: its number, the same everywhere, and an SSH public key."""

    uid: int
    key: str


@dataclass(frozen=True)
class Budget:
    """Whom AWS tells when the account's month costs too much."""

    email: str
    usd_per_month: int


@dataclass(frozen=True)
class Options:
    """What most people leave unchanged; `cluster.yaml` says what each does."""

    vpc_cidr: str = "10.1.0.0/16"
    node_recovery: str = "Automatic"
    continuous_provisioning: bool = True
    deep_health_checks: bool = False
    on_init_complete: str | None = "on_init_complete.sh"
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterConfig:
    """The content of `cluster.yaml`; its relative paths start from `folder`, where it is."""

    name: str
    region: str
    availability_zone: str
    workers: Workers = field(default_factory=Workers)
    other_workers: dict[str, Workers] = field(default_factory=dict)
    controller: Controller = field(default_factory=Controller)
    login: Login | None = None
    fsx: Fsx = field(default_factory=Fsx)
    users: dict[str, User] = field(default_factory=dict)
    budget: Budget | None = None
    observability: str | None = None
    options: Options = field(default_factory=Options)
    folder: Path = field(default=Path(), metadata={"from_file": False})

    @property
    def worker_groups(self) -> dict[str, Workers]:
        """All groups of workers by name; Slurm's partition has the same, but `train` for `workers`."""
        return {MAIN_GROUP: self.workers, **self.other_workers}

    @staticmethod
    def field_of(group: str) -> str:
        """Where in cluster.yaml a group of workers is."""
        return group if group == MAIN_GROUP else f"other_workers.{group}"

    @property
    def stack_name(self) -> str:
        """The CloudFormation stack that holds network, storage, role and bucket."""
        return f"{self.name}-hyperpod"


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML itself silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key_node in scalars:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises `UserError` with file, line and column if it is not YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {error.problem}; correct that line") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; copy cluster_setup/cluster.yaml and edit it") from None
    except UnicodeDecodeError:
        kind = kind_of(path.read_bytes()) or "save it as UTF-8"
        raise UserError(f"{path}: not UTF-8 text: {kind}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct it") from None


def load_config(path: Path) -> tuple[ClusterConfig | None, list[str]]:
    """The configuration in `path` and one line for each field whose name or type is wrong.

    The configuration is None if there are such lines. Raises `UserError` if the file is not YAML.
    """
    problems: list[str] = []
    config = _section(ClusterConfig, read_yaml(path), "", problems)
    if problems:
        return None, problems
    return dataclasses.replace(config, folder=path.parent), []


def _section(section: type, content: Any, prefix: str, problems: list[str]) -> Any:
    """An instance of the dataclass `section` from a mapping; appends to `problems` what does not fit."""
    fields = {f.name: f for f in dataclasses.fields(section) if f.metadata.get("from_file", True)}
    if not isinstance(content, dict):
        name = prefix.rstrip(".") or "the file"
        problems.append(problem(name, content, "must be a mapping", f"give it fields: {', '.join(fields)}"))
        return None
    hints = typing.get_type_hints(section)
    values = {}
    for key, value in content.items():
        if key in fields:
            values[key] = _value(hints[key], value, prefix + key, problems)
        else:
            close = difflib.get_close_matches(str(key), fields, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"the fields are: {', '.join(fields)}"
            problems.append(problem(f"{prefix}{key}", value, "no such field", remedy))
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in content:
            problems.append(problem(prefix + name, None, "is missing", "add it; it has no default"))
    return None if problems else section(**values)


def _value(hint: Any, value: Any, name: str, problems: list[str]) -> Any:
    """`value` checked against a field's type: a section, `X | None`, a dict of strings, or a plain type."""
    if isinstance(hint, types.UnionType):
        return None if value is None else _value(typing.get_args(hint)[0], value, name, problems)
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, f"{name}.", problems)
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            problems.append(problem(name, value, "must map names to groups", "write {} for none"))
            return {}
        kind = typing.get_args(hint)[1]
        return {key: _section(kind, item, f"{name}.{key}.", problems) for key, item in value.items()}
    if typing.get_origin(hint) is dict:
        pairs = value.items() if isinstance(value, dict) else [(value, None)]
        if not all(isinstance(key, str) and isinstance(item, str) for key, item in pairs):
            problems.append(problem(name, value, "must map words to words", "put quotes around each value"))
            return {}
        return value
    if type(value) is not hint:  # not isinstance: True is an int to Python, never to a reader
        wanted = {
            str: ("must be text", "put quotes around it"),
            int: ("must be a whole number", "write digits only, no quotes or units"),
            bool: ("must be true or false", "write true or false"),
        }
        problems.append(problem(name, value, *wanted[hint]))
    return value
