"""Check a request against botocore's model of the service: names, types, enums, patterns and limits.

Before it sends a request, botocore itself checks only names, types and minimum lengths. It leaves enums,
patterns and maxima to the service.
"""

import difflib
import functools
import re
from typing import Any

import botocore.session
from botocore.model import ServiceModel, Shape

from esm2_hyperpod.errors import problem

_PYTHON_TYPES = {
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
}
# Unicode categories are not in Python's re. They occur inside brackets, next to each other, where these
# stand for them.
_CATEGORIES = {r"\p{L}": r"\w", r"\p{N}": r"\d", r"\p{Z}": " "}


@functools.cache
def sagemaker_model() -> ServiceModel:
    """The installed botocore's model of SageMaker, read once."""
    return botocore.session.get_session().get_service_model("sagemaker")


def accepted_types() -> list[str]:
    """The instance types that HyperPod accepts."""
    return sagemaker_model().shape_for("ClusterInstanceType").enum


def request_problems(operation: str, request: dict[str, Any]) -> list[str]:
    """One line for each place where `request` breaks the model of the SageMaker `operation`."""
    problems: list[str] = []
    _check(sagemaker_model().operation_model(operation).input_shape, request, "", problems)
    return problems


def _check(shape: Shape, value: Any, path: str, problems: list[str]) -> None:
    if shape.type_name == "structure":
        _check_structure(shape, value, path, problems)
    elif shape.type_name == "list":
        _check_list(shape, value, path, problems)
    elif shape.type_name in _PYTHON_TYPES:  # others, such as maps, are left to botocore
        _check_scalar(shape, value, path, problems)


def _check_structure(shape: Shape, value: Any, path: str, problems: list[str]) -> None:
    if not isinstance(value, dict):
        problems.append(problem(path, value, "must be a structure", f"give it {', '.join(shape.members)}"))
        return
    prefix = f"{path}." if path else ""
    for name in shape.required_members:
        if value.get(name) is None:
            problems.append(problem(prefix + name, None, "is required", "add it"))
    for name, item in value.items():
        if name in shape.members:
            _check(shape.members[name], item, prefix + name, problems)
        else:
            close = difflib.get_close_matches(name, shape.members, n=1)
            remedy = f"did you mean {close[0]}?" if close else "remove it"
            problems.append(problem(prefix + name, item, f"{shape.name} has no such field", remedy))


def _check_list(shape: Shape, value: Any, path: str, problems: list[str]) -> None:
    if not isinstance(value, list):
        problems.append(problem(path, value, "must be a list", "put it in brackets"))
        return
    _check_limits(shape, len(value), value, path, "entries", problems)
    for index, item in enumerate(value):
        _check(shape.member, item, f"{path}[{index}]", problems)


def _check_scalar(shape: Shape, value: Any, path: str, problems: list[str]) -> None:
    expected = _PYTHON_TYPES[shape.type_name]
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        problems.append(problem(path, value, f"must be of type {shape.type_name}", "correct its type"))
        return
    if shape.type_name != "string":
        _check_limits(shape, value, value, path, "", problems)
        return
    if shape.enum and value not in shape.enum:
        close = difflib.get_close_matches(value, shape.enum, n=1)
        far = f"did you mean {close[0]}?" if close else "see AWS's list"
        remedy = f"use one of {', '.join(shape.enum)}" if len(shape.enum) <= 10 else far
        problems.append(problem(path, value, "is not an accepted value", remedy))
        return
    _check_limits(shape, len(value), value, path, "characters", problems)
    pattern = shape.metadata.get("pattern")
    if pattern and not re.fullmatch(_as_python(pattern), value):
        problems.append(problem(path, value, "has a form that is not accepted", f"match {pattern}"))


def _check_limits(shape: Shape, size: float, value: Any, path: str, unit: str, problems: list[str]) -> None:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and size < low:
        problems.append(problem(path, value, f"must be at least {low} {unit}".rstrip(), "raise it"))
    if high is not None and size > high:
        problems.append(problem(path, value, f"must be at most {high} {unit}".rstrip(), "lower it"))


def _as_python(pattern: str) -> str:
    for category, equivalent in _CATEGORIES.items():
        pattern = pattern.replace(category, equivalent)
    return pattern
