"""Grafana's data sources and dashboards, which CloudFormation cannot make: only Grafana's own HTTP API can.

The token for it belongs to a service account that exists for the moment.
"""

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.observability import SETUP
from esm2_hyperpod.cluster.request import StackOutputs
from esm2_hyperpod.errors import UserError

FILES = sorted((SETUP / "dashboards").glob("*.json"))
TOKEN_SECONDS = 600
SERVICE_ACCOUNT = "esm2-dashboards"


def import_dashboards(aws: Aws, outputs: StackOutputs, workspace_id: str) -> list[str]:
    """Make or replace data sources and dashboards; returns the dashboards' addresses.

    Raises `UserError` with Grafana's answer where it refuses one.
    """
    prometheus = {
        "uid": "prometheus", "name": "prometheus", "type": "prometheus", "access": "proxy", "isDefault": True,
        "url": outputs.PrometheusEndpoint.rstrip("/"),
        "jsonData": {"httpMethod": "POST", "sigV4Auth": True, "sigV4AuthType": "ec2_iam_role",
                     "sigV4Region": aws.region},
    }  # fmt: skip
    cloudwatch = {
        "uid": "cloudwatch", "name": "cloudwatch", "type": "cloudwatch", "access": "proxy",
        "jsonData": {"authType": "ec2_iam_role", "defaultRegion": aws.region},
    }  # fmt: skip
    made = []
    with _token(aws, workspace_id) as token:
        for source in (prometheus, cloudwatch):
            place = f"/api/datasources/uid/{source['uid']}"
            there = _grafana(outputs, token, "GET", place, missing_is_none=True)
            way = ("POST", "/api/datasources") if there is None else ("PUT", place)
            _grafana(outputs, token, *way, source)
        for path in FILES:
            board = {"dashboard": json.loads(path.read_text(encoding="utf-8")), "overwrite": True}
            answer = _grafana(outputs, token, "POST", "/api/dashboards/db", board)
            made.append(outputs.GrafanaEndpoint + answer["url"])
    return made


@contextlib.contextmanager
def _token(aws: Aws, workspace_id: str) -> Iterator[str]:
    """A token of a service account that exists only as long as it is needed."""
    grafana = aws.client("grafana")
    for account in grafana.list_workspace_service_accounts(workspaceId=workspace_id)["serviceAccounts"]:
        if account["name"] == SERVICE_ACCOUNT:  # of a run that was interrupted
            grafana.delete_workspace_service_account(workspaceId=workspace_id, serviceAccountId=account["id"])
    account_id = grafana.create_workspace_service_account(
        workspaceId=workspace_id, name=SERVICE_ACCOUNT, grafanaRole="ADMIN"
    )["id"]
    try:
        yield grafana.create_workspace_service_account_token(
            workspaceId=workspace_id, serviceAccountId=account_id, name="import", secondsToLive=TOKEN_SECONDS
        )["serviceAccountToken"]["key"]
    finally:
        grafana.delete_workspace_service_account(workspaceId=workspace_id, serviceAccountId=account_id)


def _grafana(
    outputs: StackOutputs, token: str, method: str, path: str, body: Any = None, missing_is_none: bool = False
) -> Any:
    """The answer of Grafana's HTTP API; None for what is not there if `missing_is_none`."""
    request = urllib.request.Request(
        outputs.GrafanaEndpoint + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.build_opener().open(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404 and missing_is_none:
            return None
        said = " ".join(error.read().decode(errors="replace").split())[:200]
        raise UserError(
            f"{method} {outputs.GrafanaEndpoint}{path}: Grafana answers {error.code} {said}; try again, or "
            f"import {SETUP / 'dashboards'} by hand"
        ) from None
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{outputs.GrafanaEndpoint}: no answer from Grafana ({reason}); try again") from None
