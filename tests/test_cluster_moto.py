"""hyperpod.py as a user runs it, against moto's AWS on loopback: create, status, connect, delete."""

import logging
import re
import runpy
import sys
import urllib.request
from types import SimpleNamespace

import cluster_moto
import pytest
import yaml
from conftest import ROOT, run

CONFIG = ROOT / "cluster_setup" / "cluster.yaml"
COMMAND = str(ROOT / "cluster_setup" / "hyperpod.py")


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server, address = cluster_moto.start_server()
    yield address
    server.stop()


@pytest.fixture
def aws(server, monkeypatch):
    """The address of an AWS in which nothing exists and quotas are ample."""
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"))
    cluster_moto.QUOTAS.clear()
    cluster_moto.QUOTAS.update(
        {"ml.g5.24xlarge for cluster usage": 4.0, "ml.m5.xlarge for cluster usage": 1.0}
    )
    for name, value in cluster_moto.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def hyperpod(aws, monkeypatch, capsys):
    """Runs hyperpod.py whole, in this process: importing boto3 anew takes longer than the rest."""

    def hyperpod(command, *arguments, code=0):
        words = [COMMAND, command, "--endpoint_url", aws, *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(COMMAND, run_name="__main__")
        output = capsys.readouterr()
        message = stop.value.code if isinstance(stop.value.code, str) else ""
        assert (1 if message else stop.value.code or 0) == code, output.out + message
        return SimpleNamespace(out=output.out, error=message)

    return hyperpod


def clusters(address):
    summaries = cluster_moto.client("sagemaker", address).list_clusters()["ClusterSummaries"]
    return [cluster["ClusterName"] for cluster in summaries]


def stacks(address):
    return [
        stack["StackName"]
        for stack in cluster_moto.client("cloudformation", address).describe_stacks()["Stacks"]
    ]


def test_create_makes_the_cluster_with_what_the_stack_made_and_twice_is_once(aws, hyperpod):
    first = hyperpod("create", "--yes").out
    assert "InService; nodes: controller 1/1, workers 2/2" in first
    cluster = cluster_moto.client("sagemaker", aws).describe_cluster(ClusterName="esm2")
    (vpc,) = cluster_moto.client("ec2", aws).describe_vpcs(
        Filters=[{"Name": "cidr", "Values": ["10.1.0.0/16"]}]
    )["Vpcs"]
    (subnet,) = cluster_moto.client("ec2", aws).describe_subnets(
        Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}, {"Name": "cidr", "Values": ["10.1.0.0/17"]}]
    )["Subnets"]
    assert cluster["VpcConfig"]["Subnets"] == [subnet["SubnetId"]]
    assert subnet["AvailabilityZone"] == "us-west-2b"
    (file_system,) = cluster_moto.client("fsx", aws).describe_file_systems()["FileSystems"]
    for group in cluster["InstanceGroups"]:
        mount = group["InstanceStorageConfigs"][0]["FsxLustreConfig"]
        assert mount["DnsName"] == file_system["DNSName"]
        bucket, key = re.match("s3://([^/]+)/(.*)", group["LifeCycleConfig"]["SourceS3Uri"]).groups()
        script = cluster_moto.client("s3", aws).get_object(Bucket=bucket, Key=f"{key}/on_init_complete.sh")
        assert script["Body"].read() == (CONFIG.parent / "on_init_complete.sh").read_bytes()

    second = hyperpod("create", "--yes").out
    assert "cluster esm2 is there" in second and "making stack" not in second
    assert clusters(aws) == ["esm2"] and stacks(aws) == ["esm2-hyperpod"]


def test_create_goes_on_where_it_was_interrupted(aws, hyperpod):
    hyperpod("create", "--yes")
    cluster_moto.client("sagemaker", aws).delete_cluster(ClusterName="esm2")  # as if it had not come so far
    (stack,) = cluster_moto.client("cloudformation", aws).describe_stacks()["Stacks"]
    output = hyperpod("create", "--yes").out
    assert "stack esm2-hyperpod is there" in output and "creating cluster esm2" in output
    (same,) = cluster_moto.client("cloudformation", aws).describe_stacks()["Stacks"]
    assert stack["StackId"] == same["StackId"] and clusters(aws) == ["esm2"]


@pytest.mark.parametrize("command", [["create"], ["delete"]])
def test_nothing_is_made_or_removed_without_a_yes(aws, hyperpod, command):
    if command == ["delete"]:
        hyperpod("create", "--yes")
    before = clusters(aws), stacks(aws)
    result = hyperpod(*command, code=1)
    assert "add --yes to go on" in result.error
    assert (clusters(aws), stacks(aws)) == before


def test_dry_runs_change_nothing(aws, hyperpod):
    assert "would be made" in hyperpod("create", "--dry_run").out
    assert clusters(aws) == [] and stacks(aws) == []
    hyperpod("create", "--yes")
    assert "would change cluster esm2 from 2 to 3" in hyperpod("scale", "--count", "3", "--dry_run").out
    assert "would remove all of it" in hyperpod("delete", "--dry_run").out
    assert clusters(aws) == ["esm2"] and stacks(aws) == ["esm2-hyperpod"]


def test_a_quota_too_low_stops_before_anything_is_made(aws, hyperpod):
    cluster_moto.QUOTAS["ml.g5.24xlarge for cluster usage"] = 0.0
    result = hyperpod("create", "--yes", code=1)
    assert "quota 'ml.g5.24xlarge for cluster usage' = 0.0: the cluster needs 2" in result.error
    assert "--quota-code L-1 --desired-value 2 --region us-west-2" in result.error
    assert stacks(aws) == []


def test_a_zone_without_the_machines_is_refused_with_the_zones_that_have_them(aws, hyperpod, tmp_path):
    config = yaml.safe_load(CONFIG.read_text()) | {"availability_zone": "us-west-2d"}
    config["options"]["on_init_complete"] = None
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    result = hyperpod("create", "--yes", "--config", tmp_path / "cluster.yaml", code=1)
    assert "availability_zone = 'us-west-2d': has no ml.g5.24xlarge; use one of us-west-2a" in result.error
    assert stacks(aws) == []


def test_a_stack_made_for_other_storage_is_refused_and_untouched(aws, hyperpod, tmp_path):
    hyperpod("create", "--yes")
    config = yaml.safe_load(CONFIG.read_text())
    config["fsx"]["size_gb"] = 2400
    config["options"]["on_init_complete"] = None
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    result = hyperpod("create", "--yes", "--config", tmp_path / "cluster.yaml", code=1)
    assert "FsxSizeGb=1200 (now 2400)" in result.error


def test_the_legacy_topology_file_beside_the_script_is_refused(aws, hyperpod):
    hyperpod("create", "--yes")
    cluster_moto.client("sagemaker", aws).delete_cluster(ClusterName="esm2")
    bucket = "sagemaker-esm2-123456789012-us-west-2"
    key = "lifecycle/provisioning_parameters.json"
    cluster_moto.client("s3", aws).put_object(Bucket=bucket, Key=key, Body=b"{}")
    result = hyperpod("create", "--yes", code=1)
    assert f"aws s3 rm s3://{bucket}/{key}" in result.error
    assert clusters(aws) == []


def test_status_says_what_is_there_and_what_bills(aws, hyperpod):
    absent = hyperpod("status").out
    assert "does not exist" in absent and "nothing bills" in absent
    hyperpod("create", "--yes")
    there = hyperpod("status").out
    assert "cluster esm2 in us-west-2: InService" in there
    assert "workers: 2 of 2 nodes, ml.g5.24xlarge" in there
    assert len(re.findall(r"^  \S+  (controller|workers) +Running$", there, re.M)) == 3
    for bill in ("2 x ml.g5.24xlarge", "FSx for Lustre file system", "NAT gateway", "public address"):
        assert bill in there.partition("bills now:")[2]


def test_connect_targets_the_controller_or_the_node_asked_for(aws, hyperpod):
    hyperpod("create", "--yes")
    command = hyperpod("connect", "--dry_run").out
    assert re.search(
        r"aws ssm start-session --region us-west-2 --target sagemaker-cluster:esm2_controller-controller-0",
        command,
    )
    assert "_workers-workers-0" in hyperpod("connect", "--dry_run", "--node", "workers").out
    wrong = hyperpod("connect", "--dry_run", "--node", "i-0", code=1)
    assert "no running node i-0; running nodes: controller controller-0" in wrong.error


def test_delete_removes_everything_and_says_so(aws, hyperpod):
    hyperpod("create", "--yes")
    group = "/aws/sagemaker/Clusters/esm2/abc"
    cluster_moto.client("logs", aws).create_log_group(logGroupName=group)
    output = hyperpod("delete", "--yes").out
    assert "ALL DATA under /fsx" in output and group in output
    assert output.rstrip().endswith("all removed; nothing bills")
    assert clusters(aws) == [] and stacks(aws) == []
    assert cluster_moto.client("fsx", aws).describe_file_systems()["FileSystems"] == []
    assert cluster_moto.client("s3", aws).list_buckets()["Buckets"] == []
    networks = cluster_moto.client("ec2", aws).describe_vpcs()["Vpcs"]
    assert [network["CidrBlock"] for network in networks] == [
        "172.31.0.0/16"
    ]  # the default one of any account
    assert "nothing bills" in hyperpod("delete", "--yes").out


def test_delete_can_keep_the_data(aws, hyperpod):
    hyperpod("create", "--yes")
    output = hyperpod("delete", "--yes", "--keep_stack").out
    assert clusters(aws) == [] and stacks(aws) == ["esm2-hyperpod"]
    still = output.partition("still bills:")[2]
    assert "FSx for Lustre" in still and "ml.g5.24xlarge" not in still


def test_backups_outlive_the_rest_and_are_named(aws, hyperpod):
    hyperpod("create", "--yes")
    fsx = cluster_moto.client("fsx", aws)
    file_system = fsx.describe_file_systems()["FileSystems"][0]["FileSystemId"]
    backup = fsx.create_backup(FileSystemId=file_system)["Backup"]["BackupId"]
    output = hyperpod("delete", "--yes").out
    assert f"still bills:\n  backup {backup}" in output and "aws fsx delete-backup" in output


def test_no_credentials_is_one_line(aws):
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    result = run(COMMAND, "status", "--endpoint_url", aws, check=False, **nobody)
    assert result.returncode == 1 and "aws configure" in result.stderr and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_no_answer_is_one_line(aws):
    result = run(COMMAND, "status", "--endpoint_url", "http://127.0.0.1:9", check=False)
    assert result.returncode == 1 and "AWS cannot be reached" in result.stderr
    assert len(result.stderr.splitlines()) == 1
