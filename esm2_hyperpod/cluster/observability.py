"""Metrics: what the nodes need to send them, what that costs, and whether AWS would make what shows them."""

import contextlib
from pathlib import Path

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from esm2_hyperpod import instances
from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig
from esm2_hyperpod.cluster.request import StackOutputs
from esm2_hyperpod.errors import problem

SETUP = Path(__file__).resolve().parents[2] / "cluster_setup"
NODE_FILES = ("observability.sh", "slurm_metrics.py", "gpu_metrics.csv")
CONF = "observability.conf"
# Samples a month of one series, at observability.sh's interval of 30 s.
SAMPLES = 730 * 3600 // 30
# Series of a machine with one network interface, counted with node_exporter 1.5 and observability.sh's flags;
# of a GPU, the lines of gpu_metrics.csv; of an EFA device, the counters of AWS's exporter.
NODE_SERIES, GPU_SERIES, EFA_SERIES = 100, 9, 36
PROMETHEUS_PRICING = "https://aws.amazon.com/prometheus/pricing/"
GRAFANA_PRICING = "https://aws.amazon.com/grafana/pricing/"


def node_files(config: ClusterConfig, outputs: StackOutputs) -> dict[str, bytes]:
    """What lies beside on_init_complete.sh for it, by name; no metrics, no content in the .conf."""
    conf = ""
    if config.observability:
        remote_write = f"{outputs.PrometheusEndpoint.rstrip('/')}/api/v1/remote_write"
        conf = f"CLUSTER={config.name}\nREGION={config.region}\nREMOTE_WRITE={remote_write}\n"
    return {CONF: conf.encode()} | {name: (SETUP / name).read_bytes() for name in NODE_FILES}


def plan_lines(config: ClusterConfig) -> list[str]:
    """What will exist, and what a unit of it costs by AWS's pages; by use, so it is not in the table."""
    if not config.observability:
        return []
    counts = [(config.controller.instance_type, 1)]
    counts += [(config.login.instance_type, 1)] if config.login else []
    counts += [(group.instance_type, group.count) for group in config.worker_groups.values()]
    samples = sum(count * _series(instance_type) for instance_type, count in counts) * SAMPLES
    lines = [
        f"metrics: Amazon Managed Prometheus workspace, about {samples / 1e6:.0f} million samples a month; "
        f"of these 40 million are free, then 0.90 USD for 10 million ({PROMETHEUS_PRICING})"
    ]
    if config.observability == "grafana":
        lines.append(
            "dashboards: Amazon Managed Grafana workspace, 9 USD a month for each person or service account "
            f"that edits, one at least, and 5 USD for each that only looks ({GRAFANA_PRICING})"
        )
    return lines


def _series(instance_type: str) -> int:
    gpus = instances.GPUS.get(instance_type)
    efa = instances.efa_devices(instance_type) or 0
    return NODE_SERIES + (gpus.count if gpus else 0) * GPU_SERIES + efa * EFA_SERIES


def identity_center_problems(aws: Aws, config: ClusterConfig) -> list[str]:
    """Why AWS would not make the Grafana workspace: people log in to it through IAM Identity Center.

    An account has it in one region, any of them, and each region tells of its own only.
    """
    if config.observability != "grafana" or _has_identity_center(aws, aws.region):
        return []
    for region in _identity_center_regions():
        with contextlib.suppress(BotoCoreError, ClientError):  # a region that the account has not enabled
            if region != aws.region and _has_identity_center(aws, region):
                return []
    wrong = "needs IAM Identity Center, which this account does not have"
    remedy = "enable it (AWS console, IAM Identity Center), or write prometheus"
    return [problem("observability", config.observability, wrong, remedy)]


def _has_identity_center(aws: Aws, region: str) -> bool:
    return bool(aws.client("sso-admin", region).list_instances()["Instances"])


def _identity_center_regions() -> list[str]:
    return botocore.session.get_session().get_available_regions("sso-admin")
