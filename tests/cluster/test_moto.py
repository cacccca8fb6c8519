"""hyperpod.py as a user runs it, against moto's AWS on loopback: create, status, connect, delete."""

import fnmatch
import functools
import json
import logging
import os
import re
import shlex
import sys
import urllib.request
from types import SimpleNamespace

import boto3
import botocore.session
import pytest
import yaml
from botocore.client import BaseClient
from botocore.validate import ParamValidator
from helpers import cluster_moto, pages
from helpers.commands import ROOT, run
from moto.sagemaker.models import ClusterNode
from moto.ssoadmin.models import SSOAdminBackend

from esm2_hyperpod.cluster import aws as aws_module
from esm2_hyperpod.cluster import billing, commands, observability, quotas, ssh

# Making clients anew for each command takes longer than the rest of it.
shared_aws = functools.cache(aws_module.Aws)
CONFIG = ROOT / "cluster_setup" / "cluster.yaml"
OPERATOR = json.loads((ROOT / "cluster_setup" / "operator_policy.json").read_text())["Statement"]
# Where IAM's name is not the API's.
IAM_NAME = {"service-quotas": "servicequotas"}
S3_ACTIONS = {
    "s3:ListObjectsV2": "s3:ListBucket", "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:DeleteObjects": "s3:DeleteObject",
}  # fmt: skip
COMMAND = str(ROOT / "cluster_setup" / "hyperpod.py")


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server, address = cluster_moto.start_server()
    yield SimpleNamespace(address=address, has_cluster=False)
    server.stop()


@pytest.fixture
def aws(server, monkeypatch):
    """The address of an AWS in which nothing exists and quotas are ample."""
    _credentials(monkeypatch)
    _start_over(server)
    return server.address


@pytest.fixture
def aws_with_cluster(server, monkeypatch, hyperpod):
    """The address of an AWS in which the shipped cluster.yaml has been created; for tests that only read."""
    _credentials(monkeypatch)
    if not server.has_cluster:
        _start_over(server)
        hyperpod("create", "--yes")
        server.has_cluster = True
    return server.address


def _credentials(monkeypatch):
    for name, value in cluster_moto.CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def _start_over(server):
    urllib.request.urlopen(urllib.request.Request(f"{server.address}/moto-api/reset", method="POST"))
    server.has_cluster = False
    cluster_moto.QUOTAS.clear()
    cluster_moto.QUOTAS.update(
        {"ml.g5.24xlarge for cluster usage": 4.0, "ml.m5.xlarge for cluster usage": 1.0}
    )


@pytest.fixture
def hyperpod(server, hyperpod, monkeypatch):
    """hyperpod.py with the server as its AWS, and the clients of the commands before."""
    monkeypatch.setattr(aws_module, "Aws", shared_aws)
    # moto has no price list; every unit of everything costs a dollar here.
    monkeypatch.setattr(billing, "current_prices", lambda aws, keys: (dict.fromkeys(keys, 1.0), "today", []))

    def on_server(command, *arguments, code=0):
        return hyperpod(command, "--endpoint_url", server.address, *arguments, code=code)

    return on_server


def clusters(address):
    summaries = cluster_moto.client("sagemaker", address).list_clusters()["ClusterSummaries"]
    return [cluster["ClusterName"] for cluster in summaries]


def stacks(address):
    return [
        stack["StackName"]
        for stack in cluster_moto.client("cloudformation", address).describe_stacks()["Stacks"]
    ]


def test_create_makes_the_cluster_with_what_the_stack_made(aws_with_cluster, hyperpod):
    cluster = cluster_moto.client("sagemaker", aws_with_cluster).describe_cluster(ClusterName="esm2")
    (vpc,) = cluster_moto.client("ec2", aws_with_cluster).describe_vpcs(
        Filters=[{"Name": "cidr", "Values": ["10.1.0.0/16"]}]
    )["Vpcs"]
    (subnet,) = cluster_moto.client("ec2", aws_with_cluster).describe_subnets(
        Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}, {"Name": "cidr", "Values": ["10.1.0.0/17"]}]
    )["Subnets"]
    assert cluster["VpcConfig"]["Subnets"] == [subnet["SubnetId"]]
    assert subnet["AvailabilityZone"] == "us-west-2b"
    (file_system,) = cluster_moto.client("fsx", aws_with_cluster).describe_file_systems()["FileSystems"]
    for group in cluster["InstanceGroups"]:
        mount = group["InstanceStorageConfigs"][0]["FsxLustreConfig"]
        assert mount["DnsName"] == file_system["DNSName"]
        bucket, key = re.match("s3://([^/]+)/(.*)", group["LifeCycleConfig"]["SourceS3Uri"]).groups()
        script = cluster_moto.client("s3", aws_with_cluster).get_object(
            Bucket=bucket, Key=f"{key}/on_init_complete.sh"
        )
        users = cluster_moto.client("s3", aws_with_cluster).get_object(Bucket=bucket, Key=f"{key}/users.txt")
        assert users["Body"].read() == b""
        conf = cluster_moto.client("s3", aws_with_cluster).get_object(
            Bucket=bucket, Key=f"{key}/observability.conf"
        )
        assert conf["Body"].read() == b""  # on_init_complete.sh then starts no exporter
        assert script["Body"].read() == (CONFIG.parent / "on_init_complete.sh").read_bytes()


def test_status_says_what_is_there_and_what_bills(aws_with_cluster, hyperpod):
    there = hyperpod("status").out
    assert "cluster esm2 in us-west-2: InService" in there
    assert "workers: 2 of 2 nodes, ml.g5.24xlarge" in there
    assert len(re.findall(r"^  \S+  (controller|workers) +Running$", there, re.M)) == 3
    # a dollar for each of 3 nodes, gateway and address an hour, and for each of 1200 GB a month of 730 hours
    assert "6.644  USD an hour" in there
    for bill in ("2 x ml.g5.24xlarge", "FSx for Lustre file system", "NAT gateway", "public address"):
        assert bill in there.partition("bills now:")[2]


SCONTROL = """\

Starting session with SessionId: me-0123
2026-11-21T20:40:07\r
NodeName=ip-10-1-0-5 Arch=x86_64 State=IDLE LastBusyTime=2026-11-21T17:10:00 CfgTRES=cpu=1\r
NodeName=ip-10-1-0-6 Arch=x86_64 State=ALLOCATED LastBusyTime=2026-11-21T17:10:00 CfgTRES=cpu=1\r
Exiting session with sessionId: me-0123.
"""


def test_status_says_which_workers_idle_and_for_how_long(aws_with_cluster, hyperpod, monkeypatch, tmp_path):
    """moto's nodes have no host name."""
    described = {"workers-0": "ip-10-1-0-5", "workers-1": "ip-10-1-0-6", "controller-0": "ip-10-1-0-4"}
    summary = ClusterNode.summary
    monkeypatch.setattr(ClusterNode, "summary", lambda node: summary(node) | {
        "PrivateDnsHostname": f"{described[node.instance_id]}.us-west-2.compute.internal"})  # fmt: skip
    for tool, text in (("aws", f"echo \"$*\" >{tmp_path}/asked; cat {tmp_path}/answer"),
                       ("session-manager-plugin", "")):  # fmt: skip
        (tmp_path / tool).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "answer").write_text(SCONTROL)
    there = hyperpod("status").out
    assert "workers-0  workers     Running, idle for 3 h 30 min: it bills\n" in there
    assert "workers-1  workers     Running\n" in there
    assert "_controller-controller-0 --document-name AWS-StartNonInteractiveCommand" in (
        tmp_path / "asked").read_text()  # fmt: skip
    (tmp_path / "answer").write_text("An error occurred (TargetNotConnected)\n")
    there = hyperpod("status").out
    assert (
        "which workers idle is not known: the controller's Slurm did not answer: An error occurred" in there
    )
    (tmp_path / "aws").unlink()
    assert "which workers idle is not known: aws is not installed; get it from" in hyperpod("status").out


def test_a_mistake_that_matters_to_creation_only_does_not_stand_in_the_way_of_removal(
    aws_with_cluster, hyperpod, tmp_path
):
    (tmp_path / "cluster.yaml").write_text(CONFIG.read_text())  # without the script it names
    assert "correct the path" in hyperpod("create", "--config", tmp_path / "cluster.yaml", code=1).error
    assert "would remove all" in hyperpod("delete", "--dry_run", "--config", tmp_path / "cluster.yaml").out


def test_connect_targets_the_controller_or_the_node_asked_for(aws_with_cluster, hyperpod):
    command = hyperpod("connect", "--dry_run").out
    assert re.search(
        r"aws ssm start-session --region us-west-2 --target sagemaker-cluster:esm2_controller-controller-0",
        command,
    )
    assert "_workers-workers-0" in hyperpod("connect", "--dry_run", "--node", "workers").out
    wrong = hyperpod("connect", "--dry_run", "--node", "i-0", code=1)
    assert "no running node i-0; running nodes: controller controller-0" in wrong.error


def public_key(folder):
    path = folder / "id_ed25519.pub"
    path.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJtiny+key/xyz me's laptop\n")
    return path


def test_connect_gives_an_ssh_entry_through_session_manager(
    aws_with_cluster, hyperpod, monkeypatch, tmp_path
):
    """The entry as ssh itself reads it; and the command for the node, run here in place of there."""
    key = public_key(tmp_path)
    sudo = f'#!/bin/bash\nshift 3\nHOME={tmp_path}/home exec "$@"\n'  # sudo -u ubuntu -H
    aws_cli = '#!/bin/bash\necho "$@" >>"$ASKED"; eval "$(command_of <<<"${!#}")"\n'
    read_json = f"#!{sys.executable}\nimport json, sys\nprint(json.load(sys.stdin)['command'][0])\n"
    tools = {"sudo": sudo, "aws": aws_cli, "command_of": read_json, "session-manager-plugin": ""}
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    for _ in range(2):
        result = hyperpod("connect", "--ssh-config", "--key", key)
    authorized = tmp_path / "home" / ".ssh" / "authorized_keys"
    assert authorized.read_text() == key.read_text()  # once
    assert authorized.stat().st_mode & 0o777 == 0o600
    assert "--document-name AWS-StartNonInteractiveCommand" in (tmp_path / "asked").read_text()
    (tmp_path / "config").write_text(result.out)
    read = run("ssh", "-G", "-F", tmp_path / "config", "esm2").stdout
    for line in (
        "user ubuntu", f"identityfile {tmp_path}/id_ed25519", "hostkeyalias controller-0", "port 22",
        "proxycommand aws ssm start-session --region us-west-2 --target "
        "sagemaker-cluster:esm2_controller-controller-0 --document-name AWS-StartSSHSession "
        "--parameters portNumber=%p",
    ):  # fmt: skip
        assert line in read.splitlines(), read
    (tmp_path / "aws").write_text(
        "#!/bin/bash\necho 'An error occurred (TargetNotConnected)' >&2; exit 254\n"
    )
    refused = hyperpod("connect", "--ssh_config", "--key", key, code=1)
    assert "the node did not take" in refused.error and "TargetNotConnected" in refused.error
    assert refused.out == ""


def test_a_key_that_is_none_is_refused_in_one_line(aws_with_cluster, hyperpod, monkeypatch, tmp_path):
    private = tmp_path / "id_rsa"
    private.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for words, message in (
        (["--ssh_config", "--key", private], "is not an SSH public key; give the file that ends in .pub"),
        (["--ssh_config", "--key", tmp_path / "none"], "no such file; make a key with: ssh-keygen"),
        (["--ssh_config"], "make a key with: ssh-keygen -t ed25519, or give --key"),
        (["--key", private], "--key goes with --ssh_config"),
    ):
        error = hyperpod("connect", "--dry_run", *words, code=1).error
        assert message in error and "\n" not in error.strip()


def test_a_stack_made_for_other_storage_is_refused_and_untouched(aws_with_cluster, hyperpod, tmp_path):
    config = yaml.safe_load(CONFIG.read_text())
    config["fsx"]["size_gb"] = 2400
    config["options"]["on_init_complete"] = None
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    result = hyperpod("create", "--yes", "--config", tmp_path / "cluster.yaml", code=1)
    assert "FsxSizeGb=1200 (now 2400)" in result.error


def test_create_goes_on_where_it_was_interrupted_and_twice_is_once(aws_with_cluster, hyperpod, server):
    """Takes the cluster away, as if it had not come so far, and puts the legacy file in its way."""
    server.has_cluster = False
    cloudformation = cluster_moto.client("cloudformation", aws_with_cluster)
    (stack,) = cloudformation.describe_stacks()["Stacks"]
    again = hyperpod("create", "--yes").out
    assert "cluster esm2 exists" in again and "making stack" not in again

    cluster_moto.client("sagemaker", aws_with_cluster).delete_cluster(ClusterName="esm2")
    bucket, key = "sagemaker-esm2-123456789012-us-west-2", "lifecycle/provisioning_parameters.json"
    cluster_moto.client("s3", aws_with_cluster).put_object(Bucket=bucket, Key=key, Body=b"{}")
    refused = hyperpod("create", "--yes", code=1)
    assert f"aws s3 rm s3://{bucket}/{key}" in refused.error and clusters(aws_with_cluster) == []

    cluster_moto.client("s3", aws_with_cluster).delete_object(Bucket=bucket, Key=key)
    output = hyperpod("create", "--yes").out
    assert "stack esm2-hyperpod exists" in output and "creating cluster esm2" in output
    (same,) = cloudformation.describe_stacks()["Stacks"]
    assert stack["StackId"] == same["StackId"] and clusters(aws_with_cluster) == ["esm2"]


def test_a_second_group_is_made_and_scaled_by_its_name(aws, hyperpod, tmp_path):
    config = yaml.safe_load(CONFIG.read_text())
    config["other_workers"] = {"cpu": {"instance_type": "ml.c5.9xlarge", "count": 1}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "on_init_complete.sh").write_text("#!/bin/bash\n")
    cluster_moto.QUOTAS["ml.c5.9xlarge for cluster usage"] = 2.0
    ours = ["--config", tmp_path / "cluster.yaml"]
    hyperpod("create", "--yes", *ours)
    output = hyperpod("scale", "--group", "cpu", "--count", "0", *ours).out
    assert "none of cpu bills; " in output and "scale --group cpu --count 1" in output
    assert "the cluster needs 3" in hyperpod("scale", "--group", "cpu", "--count", "3", *ours, code=1).error
    groups = cluster_moto.client("sagemaker", aws).describe_cluster(ClusterName="esm2")["InstanceGroups"]
    assert {g["InstanceGroupName"]: g["TargetCount"] for g in groups} == {
        "controller": 1,
        "workers": 2,
        "cpu": 0,
    }
    again = hyperpod("create", "--yes", *ours).out
    assert (
        "it has 0 cpu, cluster.yaml asks for 1; change it with: hyperpod.py scale --group cpu --count 1"
        in again
    )
    wrong = hyperpod("scale", "--group", "gpu", "--count", "1", *ours, code=1).error
    assert "--group gpu: not in cluster.yaml, which has workers, cpu" in wrong


def test_workspaces_for_metrics_come_and_go_with_one_option(aws, hyperpod, tmp_path, monkeypatch):
    config = yaml.safe_load(CONFIG.read_text()) | {"workers": {"count": 0}}
    (tmp_path / "on_init_complete.sh").write_text("#!/bin/bash\n")
    ours = ["--config", tmp_path / "cluster.yaml"]
    amp, grafana = cluster_moto.client("amp", aws), cluster_moto.StackGrafana.there

    def create(wanted, code=0):
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config | {"observability": wanted}))
        return hyperpod("create", "--yes", *ours, code=code)

    home, list_instances = [], SSOAdminBackend.list_instances
    # Making a client for each region takes longer than all the rest.
    monkeypatch.setattr(observability, "_identity_center_regions", lambda: ["us-west-2", "eu-west-1"])
    monkeypatch.setattr(
        SSOAdminBackend, "list_instances", lambda b: list_instances(b) if b.region_name in home else []
    )
    refused = create("grafana", code=1).error
    assert "observability = 'grafana': needs IAM Identity Center" in refused and stacks(aws) == []
    home.append("eu-west-1")  # an account's Identity Center may be in another region
    create("grafana")
    (workspace,) = amp.list_workspaces()["workspaces"]
    workspace = amp.describe_workspace(workspaceId=workspace["workspaceId"])["workspace"]
    remote_write = f"{workspace['prometheusEndpoint']}api/v1/remote_write"
    place = {"Bucket": "sagemaker-esm2-123456789012-us-west-2", "Key": "lifecycle/observability.conf"}
    conf = cluster_moto.client("s3", aws).get_object(**place)["Body"].read().decode()
    assert conf == f"CLUSTER=esm2\nREGION=us-west-2\nREMOTE_WRITE={remote_write}\n"
    there = hyperpod("status", *ours).out
    assert f"Prometheus workspace, with ALL METRICS, {workspace['arn']}" in there
    assert "Grafana workspace, with its dashboards, g-0123456789" in there
    would = hyperpod("dashboards", "--dry_run", *ours).out
    assert would == "would put data sources and the dashboards efa, fsx, gpu, slurm into g-0123456789\n"
    assert "bills as one who edits this month. There is" in hyperpod("dashboards", *ours, code=1).error
    asked = []
    monkeypatch.setattr(
        commands, "import_dashboards", lambda *words: asked.append(words) or ["https://g-0/d/x"]
    )
    said = hyperpod("dashboards", "--yes", *ours).out
    assert "https://g-0/d/x\n" in said and asked[0][2] == "g-0123456789"
    assert asked[0][1].GrafanaEndpoint == "https://g-0123456789.grafana-workspace.us-west-2.amazonaws.com"
    let_in = shlex.split(said.splitlines()[-1])
    assert let_in[:3] == ["aws", "grafana", "update-permissions"]
    batch = {"workspaceId": let_in[6], "updateInstructionBatch": json.loads(let_in[8])}
    model = botocore.session.get_session().get_service_model("grafana").operation_model("UpdatePermissions")
    assert not ParamValidator().validate(batch, model.input_shape).has_errors()
    assert len(grafana) == 1 and grafana[0]["AuthenticationProviders"] == ["AWS_SSO"]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))  # without observability
    assert "removes the Prometheus workspace with ALL METRICS" in hyperpod("create", *ours, code=1).error
    assert len(amp.list_workspaces()["workspaces"]) == 1
    assert "all removed; nothing bills" in hyperpod("delete", "--yes", *ours).out
    assert amp.list_workspaces()["workspaces"] == [] and grafana == []


def test_nothing_is_made_without_a_yes_nor_in_a_dry_run(aws, hyperpod):
    assert "add --yes to continue" in hyperpod("create", code=1).error
    assert "cluster esm2: would be made" in hyperpod("create", "--dry_run").out
    assert "does not exist" in hyperpod("status").out and "nothing bills" in hyperpod("status").out
    assert clusters(aws) == [] and stacks(aws) == []


def test_nothing_is_removed_or_changed_without_a_yes_nor_in_a_dry_run(aws_with_cluster, hyperpod):
    assert "add --yes to continue" in hyperpod("delete", code=1).error
    assert "would remove all of it" in hyperpod("delete", "--dry_run").out
    assert "would change cluster esm2 from 2 to 3" in hyperpod("scale", "--count", "3", "--dry_run").out
    assert "exists, would be kept" in hyperpod("create", "--dry_run").out
    assert clusters(aws_with_cluster) == ["esm2"] and stacks(aws_with_cluster) == ["esm2-hyperpod"]


def test_check_and_update_ask_first_and_say_what_they_would_do(aws_with_cluster, hyperpod, monkeypatch):
    would = hyperpod("check", "--dry_run").out
    assert would == "would start a check that stresses GPUs and network of workers-0, workers-1\n"
    assert "network of workers-1\n" in hyperpod("check", "--dry_run", "--node", "workers-1").out
    wrong = hyperpod("check", "--node", "i-0", code=1).error
    assert "i-0: no such running node in group workers; running nodes: controller controller-0, " in wrong
    assert "no such running node in group gpu" in hyperpod("check", "--group", "gpu", code=1).error
    for command, warning in (("check", "Jobs there would fail"), ("update", "WIPES THEIR ROOT DISKS")):
        refused = hyperpod(command, code=1).error
        assert warning in refused and "add --yes to continue" in refused
    summary = ClusterNode.summary
    old = {"ImageVersionStatus": "SecurityUpdateRequired"}
    monkeypatch.setattr(
        ClusterNode, "summary", lambda n: summary(n) | (old if "worker" in n.instance_id else {})
    )
    assert "2 of 3 nodes have an old image; would give all" in hyperpod("update", "--dry_run").out
    there = hyperpod("status").out
    assert there.count("Running, image: SecurityUpdateRequired (hyperpod.py update)") == 2


def test_scaling_beyond_the_quota_or_below_nothing_is_refused(aws_with_cluster, hyperpod):
    assert "the cluster needs 5" in hyperpod("scale", "--count", "5", code=1).error
    assert "workers.count = -1" in hyperpod("scale", "--count", "-1", code=1).error


def test_a_quota_too_low_stops_before_anything_is_made(aws, hyperpod):
    cluster_moto.QUOTAS["ml.g5.24xlarge for cluster usage"] = 0.0
    result = hyperpod("create", "--yes", code=1)
    assert "quota 'ml.g5.24xlarge for cluster usage' = 0.0: the cluster needs 2" in result.error
    assert "--quota-code L-1 --desired-value 2 --region us-west-2" in result.error
    assert stacks(aws) == []


def test_quotas_are_those_that_others_have_left(aws, hyperpod, monkeypatch, tmp_path):
    """AWS's defaults count where the account has no value of its own; so do other clusters and networks."""
    sagemaker, ec2 = cluster_moto.client("sagemaker", aws), cluster_moto.client("ec2", aws)
    group = {
        "InstanceGroupName": "theirs", "InstanceType": "ml.g5.24xlarge", "InstanceCount": 3,
        "LifeCycleConfig": {"SourceS3Uri": "s3://sagemaker-x/y", "OnCreate": "z"},
        "ExecutionRole": "arn:aws:iam::123456789012:role/theirs",
    }  # fmt: skip
    sagemaker.create_cluster(ClusterName="other", InstanceGroups=[group])
    monkeypatch.setitem(cluster_moto.DEFAULT_QUOTAS, quotas.IN_ALL_CLUSTERS, 5.0)
    monkeypatch.setitem(cluster_moto.DEFAULT_QUOTAS, "VPCs per Region", 1.0)
    monkeypatch.delitem(cluster_moto.DEFAULT_QUOTAS, "EC2-VPC Elastic IPs")
    config = yaml.safe_load(CONFIG.read_text())
    config["workers"]["local_disk_gb"] = 2000
    config["options"]["on_init_complete"] = None
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    result = hyperpod("create", "--yes", "--config", tmp_path / "cluster.yaml", code=1)
    assert "quota 'EC2-VPC Elastic IPs': not checked: AWS lists no such quota here" in result.out
    for line in (
        "quota 'ml.g5.24xlarge for cluster usage' = 4.0: the cluster needs 2, 3 more are in use; ask",
        f"quota '{quotas.IN_ALL_CLUSTERS}' = 5.0: the cluster needs 3, 3 more are in use",
        f"quota '{quotas.DISK}' = 1024.0: the cluster needs 2000;",
        "quota 'VPCs per Region' = 1.0: the cluster needs 1, 1 more are in use; ask for more: aws "
        "service-quotas request-service-quota-increase --service-code vpc --quota-code L-1 "
        "--desired-value 2 --region us-west-2",
    ):
        assert line in result.error
    assert result.error.count("quota '") == 4 and stacks(aws) == []
    assert len(ec2.describe_vpcs()["Vpcs"]) == 1


def test_the_data_bucket_must_be_there_in_the_region(aws, hyperpod, tmp_path):
    ireland = boto3.Session("testing", "testing", region_name="eu-west-1").client("s3", endpoint_url=aws)
    ireland.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    config = yaml.safe_load(CONFIG.read_text())
    config["options"]["on_init_complete"] = None
    for bucket, wrong in (
        ("none-such", "there is no such bucket; name another, or make it with: aws s3 mb s3://none-such"),
        ("far-away", "is in eu-west-1, not in us-west-2"),
    ):
        config["fsx"]["data_bucket"] = bucket
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
        error = hyperpod("create", "--yes", "--config", tmp_path / "cluster.yaml", code=1).error
        assert f"fsx.data_bucket = '{bucket}': {wrong}" in error and stacks(aws) == []


def test_a_zone_without_the_machines_is_refused_with_the_zones_that_have_them(aws, hyperpod, tmp_path):
    config = yaml.safe_load(CONFIG.read_text()) | {"availability_zone": "us-west-2d"}
    config["options"]["on_init_complete"] = None
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    result = hyperpod("create", "--yes", "--config", tmp_path / "cluster.yaml", code=1)
    assert "availability_zone = 'us-west-2d': has no ml.g5.24xlarge; use one of us-west-2a" in result.error
    assert stacks(aws) == []


def test_delete_keeps_the_data_if_asked_and_else_removes_all_but_backups(aws, hyperpod):
    hyperpod("create", "--yes")
    still = hyperpod("delete", "--yes", "--keep_stack").out.partition("still bills:")[2]
    assert clusters(aws) == [] and stacks(aws) == ["esm2-hyperpod"]
    assert "FSx for Lustre" in still and "ml.g5.24xlarge" not in still

    group = "/aws/sagemaker/Clusters/esm2/abc"
    cluster_moto.client("logs", aws).create_log_group(logGroupName=group)
    fsx = cluster_moto.client("fsx", aws)
    file_system = fsx.describe_file_systems()["FileSystems"][0]["FileSystemId"]
    backup = fsx.create_backup(FileSystemId=file_system)["Backup"]["BackupId"]
    output = hyperpod("delete", "--yes").out
    assert "ALL DATA under /fsx" in output and group in output
    assert f"still bills:\n  backup {backup}" in output and "aws fsx delete-backup" in output
    assert stacks(aws) == [] and fsx.describe_file_systems()["FileSystems"] == []
    assert cluster_moto.client("s3", aws).list_buckets()["Buckets"] == []
    assert cluster_moto.client("logs", aws).describe_log_groups()["logGroups"] == []
    networks = cluster_moto.client("ec2", aws).describe_vpcs()["Vpcs"]
    assert [network["CidrBlock"] for network in networks] == [
        "172.31.0.0/16"
    ]  # the default one of any account
    fsx.delete_backup(BackupId=backup)
    assert "nothing bills" in hyperpod("delete", "--yes").out


@pytest.fixture
def interrupt(monkeypatch):
    """`interrupt.after(n)`: Ctrl-C as soon as AWS has done the n-th call from now, before its answer is read.

    `interrupt.called` is every action that was asked for, as IAM calls it.
    """
    make_call, left, called = BaseClient._make_api_call, [0], set()

    def call(client, operation, arguments):
        service = client.meta.service_model.service_name
        if left[0] > 0:  # the command's call, not one of the test's own
            called.add(f"{IAM_NAME.get(service, service)}:{operation}")
        answer = make_call(client, operation, arguments)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    interrupt = functools.partial(left.__setitem__, 0)
    return SimpleNamespace(after=interrupt, called=called)


def run_interrupted_at_every_call(hyperpod, interrupt, *words):
    """Run a command until it ends, interrupted after 1 call, then after 2, ...; returns the calls it took."""
    for calls in range(1, 200):
        interrupt.after(calls)
        try:
            hyperpod(*words, code=130)
        except AssertionError:  # it has not been interrupted
            interrupt.after(0)
            hyperpod(*words)  # and is done, so that once more changes nothing
            return calls
    raise AssertionError(f"{words[0]} does not end")


def test_a_life_interrupted_at_every_call_makes_nothing_twice_and_leaves_nothing_billing(
    aws, hyperpod, interrupt
):
    ec2, sagemaker = cluster_moto.client("ec2", aws), cluster_moto.client("sagemaker", aws)
    billed = [{"Name": "state", "Values": ["pending", "available"]}]  # AWS lists deleted ones for an hour

    def kinds():
        return {
            "clusters": len(clusters(aws)), "stacks": len(stacks(aws)),
            "VPCs": len(ec2.describe_vpcs(Filters=[{"Name": "isDefault", "Values": ["false"]}])["Vpcs"]),
            "gateways": len(ec2.describe_nat_gateways(Filters=billed)["NatGateways"]),
            "addresses": len(ec2.describe_addresses()["Addresses"]),
            "file systems": len(cluster_moto.client("fsx", aws).describe_file_systems()["FileSystems"]),
            "buckets": len(cluster_moto.client("s3", aws).list_buckets()["Buckets"]),
        }  # fmt: skip

    calls = {"create": run_interrupted_at_every_call(hyperpod, interrupt, "create", "--yes")}
    assert set(kinds().values()) == {1}
    nodes = sagemaker.list_cluster_nodes(ClusterName="esm2")["ClusterNodeSummaries"]
    assert len(nodes) == 3
    for count in ("0", "2"):
        calls[count] = run_interrupted_at_every_call(hyperpod, interrupt, "scale", "--count", count)
        groups = sagemaker.describe_cluster(ClusterName="esm2")["InstanceGroups"]
        assert [group["TargetCount"] for group in groups] == [1, int(count)]
        assert set(kinds().values()) == {1}  # without workers cluster, network and data stay
        assert f"{count} x ml.g5.24xlarge (workers)" in hyperpod("status").out
        assert "USD an hour" in hyperpod("status").out
    calls["delete"] = run_interrupted_at_every_call(hyperpod, interrupt, "delete", "--yes")
    assert set(kinds().values()) == {0}, kinds()
    assert "nothing bills" in hyperpod("status").out
    assert min(calls.values()) > 5, calls
    asked = {S3_ACTIONS.get(action, action) for action in interrupt.called}
    assert "sagemaker:CreateCluster" in asked and len(asked) > 20
    patterns = [a for s in OPERATOR for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])]
    assert [a for a in sorted(asked) if not any(fnmatch.fnmatch(a, pattern) for pattern in patterns)] == []


CONFIRMED = ("create", "check", "update", "delete")


def test_the_pages_line_by_line(aws, hyperpod, tmp_path):
    """Every command for AWS, of cluster_setup/README.md and then of the other pages, in its order."""
    walked = []
    for line in pages.aws_commands():
        words = line.partition(" >>")[0].split()
        if words[0] not in ("plan", "create") and clusters(aws) == []:
            hyperpod("create", "--yes")  # an earlier line has removed it
        if words[0] == "dashboards":  # with another cluster.yaml; the test of the workspaces runs it
            assert "has no Grafana workspace" in hyperpod(*words, code=1).error
            continue
        if words[0] == "connect":
            words.append("--dry_run")
        if "--ssh_config" in words:
            words += ["--key", public_key(tmp_path)]
            printed = hyperpod(*words).error
            assert [use.strip() for use in printed.splitlines()] == ssh.uses("esm2")
            continue
        hyperpod(*words, *["--yes"] * (words[0] in CONFIRMED and "--dry_run" not in words))
        walked.append(words[0])
    assert set(walked) == {"plan", "create", "status", "connect", "scale", "check", "update", "delete"}
    assert set(ssh.uses("esm2")) <= set(pages.NOT_WALKED)  # as they stand on the page


def test_no_credentials_is_one_line(aws):
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    result = run(COMMAND, "status", "--endpoint_url", aws, check=False, **nobody)
    assert result.returncode == 1 and "aws configure" in result.stderr and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_no_answer_is_one_line(aws):
    result = run(COMMAND, "status", "--endpoint_url", "http://127.0.0.1:9", check=False)
    assert result.returncode == 1 and "AWS cannot be reached" in result.stderr
    assert len(result.stderr.splitlines()) == 1
