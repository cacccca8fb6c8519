"""`hyperpod.py plan` on the shipped cluster.yaml and on every mistake we could think of."""

import copy
import datetime
import json
import re

import pytest
import yaml
from botocore.client import BaseClient
from botocore.validate import ParamValidator
from helpers.commands import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_hyperpod.cluster.billing import load_prices
from esm2_hyperpod.cluster.checks import checked_config
from esm2_hyperpod.cluster.request import create_cluster_request, example_outputs
from esm2_hyperpod.cluster.schema import accepted_types, request_problems, sagemaker_model
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.instances import has_gpu, is_arm
from esm2_hyperpod.sizes import MB_PER_SECOND

SETUP = ROOT / "cluster_setup"
SHIPPED = yaml.safe_load((SETUP / "cluster.yaml").read_text())


def planted(tmp_path, changes):
    """A cluster.yaml with `changes`, as {"workers.count": 0}, made to the shipped one."""
    config = copy.deepcopy(SHIPPED)
    for field, value in changes.items():
        *sections, name = field.split(".")
        section = config
        for key in sections:
            section = section[key]
        section[name] = value
    (tmp_path / "on_init_complete.sh").write_text("#!/bin/bash\n")
    (tmp_path / "not_a_script.sh").write_text("echo\n")
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def mistakes(path):
    """The lines that `checked_config` refuses `path` with."""
    with pytest.raises(UserError) as refusal:
        checked_config(path)
    headline, *lines = str(refusal.value).splitlines()
    assert "nothing was created or changed" in headline
    return [line.strip() for line in lines]


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAItiny+key/xyz alice"
PLAN_ARN = "arn:aws:sagemaker:us-east-1:123456789012:training-plan/p5-plan-of-ours"
PLANTED = [
    ({"name": "ESM2"}, "name", "lower-case"),
    ({"name": "my_cluster"}, "name", "lower-case"),
    ({"name": "esm2-"}, "name", "lower-case"),
    ({"name": "x" * 26}, "name", "at most 25"),
    ({"name": 7}, "name", "put quotes around it"),
    ({"region": "us-wset-2"}, "region", "did you mean us-west-2?"),
    ({"availability_zone": "us-east-1a"}, "availability_zone", "us-west-2a"),
    ({"availability_zone": "usw2-az2"}, "availability_zone", "us-west-2a"),
    ({"availability_zone": None}, "availability_zone", "must be text"),
    ({"workers.instance_type": "g5.24xlarge"}, "workers.instance_type", "did you mean ml.g5.24xlarge?"),
    ({"workers.instance_type": "ml.g5.23xlarge"}, "workers.instance_type", "did you mean ml.g5.2"),
    ({"workers.instance_type": "ml.c5.xlarge"}, "workers.instance_type", "no NVIDIA GPU"),
    ({"workers.instance_type": "ml.trn1.32xlarge"}, "workers.instance_type", "no NVIDIA GPU"),
    ({"controller.instance_type": "ml.g5.xlarge"}, "controller.instance_type", "ml.m5.xlarge"),
    ({"controller.instance_type": "ml.m7g.xlarge"}, "instance_type of the groups", "one processor"),
    ({"login": {"instance_type": "ml.g5.xlarge"}}, "login.instance_type", "ml.m5.xlarge"),
    ({"login": False}, "login", "must be a mapping"),
    ({"controller.count": 2}, "controller.count", "the fields are: instance_type"),
    ({"workers.count": -1}, "workers.count", "write 0 or more"),
    ({"workers.min_count": 0}, "workers.min_count", "is not between 1 and workers.count = 2"),
    ({"workers.min_count": 3}, "workers.min_count", "is not between 1 and workers.count = 2"),
    ({"workers.min_count": 1, "options.continuous_provisioning": False}, "workers.min_count", "write null"),
    ({"workers.count": 2.5}, "workers.count", "whole number"),
    ({"workers.count": True}, "workers.count", "whole number"),
    ({"workers.count": "2"}, "workers.count", "whole number"),
    ({"workers.count": 20000}, "workers.count", "lower it"),
    ({"workers.instance_type": "ml.p5.48xlarge", "workers.count": 1000}, "workers.count", "widen options"),
    ({"workers.local_disk_gb": 0}, "workers.local_disk_gb", "use 1 to 16384"),
    ({"workers.local_disk_gb": 20000}, "workers.local_disk_gb", "use 1 to 16384"),
    ({"workers.training_plan_arn": PLAN_ARN}, "workers.training_plan_arn", "sagemaker:us-west-2"),
    ({"workers.cuont": 4}, "workers.cuont", "did you mean 'count'?"),
    ({"worker": {}}, "worker", "did you mean 'workers'?"),
    ({"other_workers": {"cpu": {"instance_typ": "x"}}}, "other_workers.cpu.instance_typ", "did you mean"),
    ({"other_workers": {"cpu": {"instance_type": "ml.c5.9xlrge"}}}, "other_workers.cpu.instance_type",
     "did you mean ml.c5.9xlarge?"),
    ({"other_workers": {"cpu": {"count": -1}}}, "other_workers.cpu.count", "write 0 or more"),
    ({"other_workers": {"cpu": {"local_disk_gb": 0}}}, "other_workers.cpu.local_disk_gb", "use 1 to 16384"),
    ({"other_workers": {"cpu": {"count": 1, "min_count": 2}}}, "other_workers.cpu.min_count", "not between"),
    ({"other_workers": {"cpu": {"count": 17000}}}, "other_workers.cpu.count", "lower it"),
    ({"other_workers": {"cpu": {"training_plan_arn": PLAN_ARN}}}, "other_workers.cpu.training_plan_arn",
     "sagemaker:us-west-2"),
    ({"other_workers": {"dev": {}}}, "other_workers", "none of controller, login, workers, train, dev"),
    ({"other_workers": {"a_b": {}}}, "other_workers", "letters, digits and hyphens"),
    ({"other_workers": [1]}, "other_workers", "write {} for none"),
    ({"other_workers": {"arm": {"instance_type": "ml.c7g.large"}}}, "instance_type of the groups", "one"),
    ({"fsx.size_gb": 1000}, "fsx.size_gb", "the next size up is 1200"),
    ({"fsx.size_gb": 3600}, "fsx.size_gb", "the next size up is 4800"),
    ({"fsx.data_bucket": "s3://ours/data"}, "fsx.data_bucket", "its name only"),
    ({"fsx.data_bucket": "sagemaker-esm2-123456789012-us-west-2"}, "fsx.data_bucket", "use another"),
    ({"fsx.throughput": 200}, "fsx.throughput", "use 125, 250, 500 or 1000"),
    ({"options.vpc_cidr": "10.1.0.0"}, "options.vpc_cidr", "10.1.0.0/16"),
    ({"options.vpc_cidr": "10.1.0.1/16"}, "options.vpc_cidr", "host bits set"),
    ({"options.vpc_cidr": "10.0.0.0/8"}, "options.vpc_cidr", "/16 to /24"),
    ({"options.vpc_cidr": "10.0.0.0/27"}, "options.vpc_cidr", "/16 to /24"),
    ({"options.vpc_cidr": "8.8.0.0/16"}, "options.vpc_cidr", "not a private range"),
    ({"options.vpc_cidr": "172.17.0.0/16"}, "options.vpc_cidr", "Docker"),
    ({"options.node_recovery": "automatic"}, "options.node_recovery", "use one of Automatic, None"),
    ({"options.node_recovery": True}, "options.node_recovery", "put quotes"),
    ({"options.deep_health_checks": "yes"}, "options.deep_health_checks", "write true or false"),
    ({"options.continuous_provisioning": 1}, "options.continuous_provisioning", "write true or false"),
    ({"options.on_init_complete": "missing.sh"}, "options.on_init_complete", "correct the path"),
    ({"options.on_init_complete": "not_a_script.sh"}, "options.on_init_complete", "first line"),
    ({"options.on_init_complete": "s3://mine/a/b.sh"}, "options.on_init_complete", "s3://sagemaker-esm2-"),
    ({"observability": "yes"}, "observability", "write prometheus, grafana, or null"),
    ({"observability": True}, "observability", "put quotes"),
    ({"observability": "grafana", "region": "eu-north-1", "availability_zone": "eu-north-1a"},
     "observability", "write prometheus, and use a Grafana of your own"),
    ({"observability": "prometheus", "options.on_init_complete": None}, "options.on_init_complete",
     "or observability: null"),
    ({"options.tags": {"aws:x": "y"}}, "options.tags.aws:x", "rename the tag"),
    ({"options.tags": {"cost": 7}}, "options.tags", "put quotes around each value"),
    ({"options.tags": "cost"}, "options.tags", "must map words to words"),
    ({"options.tags": {f"k{n}": "v" for n in range(51)}}, "options.tags", "at most 50"),
    ({"options.tags": {"a;b": "c"}}, "options.tags", "match"),
    ({"options": None}, "options", "must be a mapping"),
    ({"users": {"Alice": {"uid": 2001, "key": KEY}}}, "users", "lower-case letters"),
    ({"users": {"ubuntu": {"uid": 2001, "key": KEY}}}, "users", "none of root, ubuntu"),
    ({"users": {"alice": {"uid": 1000, "key": KEY}}}, "users.alice.uid", "use one from 2001"),
    ({"users": {"alice": {"uid": 2001, "key": KEY}, "bob": {"uid": 2001, "key": KEY}}}, "users.bob.uid",
     "a number of their own"),
    ({"users": {"alice": {"uid": 2001, "key": "secret"}}}, "users.alice.key", "id_ed25519.pub"),
    ({"users": {"alice": {"uid": 2001, "key": f"{KEY}\n{KEY}"}}}, "users.alice.key", "id_ed25519.pub"),
    ({"users": {"alice": {"key": KEY}}}, "users.alice.uid", "it has no default"),
    ({"users": {"alice": {"uid": 2001, "key": KEY}}, "options.on_init_complete": None},
     "options.on_init_complete", "or users: {}"),
    ({"budget": {"email": "me", "usd_per_month": 5}}, "budget.email", "you@example.org"),
    ({"budget": {"email": "me@here.org", "usd_per_month": 0}}, "budget.usd_per_month", "such as 500"),
    ({"budget": {"email": "me@here.org"}}, "budget.usd_per_month", "it has no default"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "field", "remedy"), PLANTED, ids=lambda value: str(value)[:60])
def test_each_planted_mistake_is_one_line_with_field_value_and_remedy(tmp_path, changes, field, remedy):
    lines = mistakes(planted(tmp_path, changes))
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{field} = ") and remedy in lines[0]
    assert ": " in lines[0] and "; " in lines[0]


def test_all_mistakes_are_told_at_once_and_the_command_exits_with_1(tmp_path, hyperpod):
    path = planted(
        tmp_path, {"name": "E", "workers.count": -1, "options.node_recovery": "No", "fsx.size_gb": 1}
    )
    result = hyperpod("plan", "--config", path, code=1)
    headline, *lines = result.error.splitlines()
    assert result.out == "" and f"{path}: 4 mistakes; nothing was created or changed" in headline
    fields = [line.split(" = ")[0].strip() for line in lines]
    assert sorted(fields) == ["fsx.size_gb", "name", "options.node_recovery", "workers.count"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "cluster.yaml:1:8: not valid YAML"),
        ("[a]: b", "cluster.yaml:1:1: not valid YAML: found unhashable key"),
        ("name: a\nname: b\n", "cluster.yaml:2:1: not valid YAML: 'name' is given twice"),
        ("!!python/object/apply:os.system [id]", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        checked_config(path)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "- a\n", "esm2\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    assert "must be a mapping" in mistakes(path)[0]


def test_a_file_with_only_what_has_no_default_is_enough(tmp_path):
    (tmp_path / "on_init_complete.sh").write_text("#!/bin/bash\n")
    path = tmp_path / "cluster.yaml"
    path.write_text("{name: esm2, region: eu-west-1, availability_zone: eu-west-1c}")
    assert checked_config(path).workers.instance_type == "ml.g5.24xlarge"


def test_the_shipped_file_states_every_default():
    """Nobody should have to read the code to know what a field left alone does."""
    minimal = {key: SHIPPED[key] for key in ("name", "region", "availability_zone")}
    path = SETUP / "cluster.yaml"
    shipped = checked_config(path)
    assert set(SHIPPED) == {f for f in shipped.__dataclass_fields__ if f != "folder"}
    for section in ("workers", "controller", "fsx", "options"):
        asked, default = getattr(shipped, section), type(getattr(shipped, section))()
        assert set(SHIPPED[section]) == set(default.__dataclass_fields__)
        differing = [f for f in SHIPPED[section] if getattr(asked, f) != getattr(default, f)]
        assert differing in ([], ["tags"]), f"{section}: {differing}"
    assert minimal["name"] == shipped.name


def test_plan_tells_what_will_exist_and_bill_and_what_it_does_not_know(hyperpod):
    output = hyperpod("plan").out
    for part in ("2 x ml.g5.24xlarge, each with 4 x A10G 24 GB, 70 dense", "FSx for Lustre, 1200 GB"):
        assert part in output
    assert "quota 'ml.g5.24xlarge for cluster usage' of 2 or more" in output
    assert (
        "a checkpoint of 3B, the largest model for these workers: 34 GB, 116 s at 293 MB/s; with the "
        in output
    )
    assert "4 of them take 196 GB" in output and "does not fit" not in output
    fsx = checked_config(SETUP / "cluster.yaml").fsx
    assert fsx.size_gb / 1024 * fsx.throughput == pytest.approx(MB_PER_SECOND, abs=1)


def test_a_group_of_its_own_for_the_steps_without_gpu(tmp_path, hyperpod):
    groups = {"cpu": {"instance_type": "ml.c5.9xlarge", "count": 3}}
    changes = {"other_workers": groups, "options.deep_health_checks": True}
    path = planted(tmp_path, changes)
    *_, workers, cpu = json.loads(hyperpod("plan", "--json", "--config", path).out)[G]
    assert cpu["SlurmConfig"] == {"NodeType": "Compute", "PartitionNames": ["cpu"]}
    assert workers["SlurmConfig"]["PartitionNames"] == ["train"]
    assert "OnStartDeepHealthChecks" in workers and "OnStartDeepHealthChecks" not in cpu  # they stress GPUs
    output = hyperpod("plan", "--config", path).out
    assert "cpu: 3 x ml.c5.9xlarge, each with no GPU" in output
    assert "quota 'ml.c5.9xlarge for cluster usage' of 3 or more" in output
    assert "ml.c5.9xlarge: aws pricing get-products" in output


def test_plan_says_what_metrics_and_dashboards_cost(tmp_path, hyperpod):
    assert "Prometheus" not in hyperpod("plan").out
    output = hyperpod("plan", "--config", planted(tmp_path, {"observability": "grafana"})).out
    # every 30 s: 100 of each of 3 machines, 9 of each of 8 GPUs, 36 of each of 2 EFA devices
    million = (3 * 100 + 8 * 9 + 2 * 36) * 730 * 120 / 1e6
    assert (
        f"about {million:.0f} million samples a month; of these 40 million are free, then 0.90 USD" in output
    )
    assert "9 USD a month for each person or service account that edits" in output
    assert output.count("https://aws.amazon.com/") == 2
    alone = hyperpod("plan", "--config", planted(tmp_path, {"observability": "prometheus"})).out
    assert "million samples" in alone and "Grafana" not in alone


def test_plan_says_where_a_checkpoint_takes_too_long(tmp_path, hyperpod):
    changes = {"workers.instance_type": "ml.p5.48xlarge", "fsx.throughput": 125}
    output = hyperpod("plan", "--config", planted(tmp_path, changes)).out
    assert "a checkpoint of 15B, the largest model for these workers: 182 GB, 1239 s at 146 MB/s" in output
    assert "sbatch --signal=B:USR1@2479" in output
    none = hyperpod("plan", "--config", planted(tmp_path, {"workers.count": 0})).out
    assert "a checkpoint" not in none


def test_plan_without_a_login_says_which_call_would_give_each_price(hyperpod):
    output = hyperpod("plan").out
    assert "prices not read: no AWS credentials on this machine" in output and "?" not in output
    assert (
        "ml.g5.24xlarge: aws pricing get-products --region us-east-1 --service-code AmazonSageMaker "
        "--filters Type=TERM_MATCH,Field=regionCode,Value=us-west-2 "
        "Type=CONTAINS,Field=usagetype,Value=Cluster:ml.g5.24xlarge" in output
    )
    assert len(re.findall(r"^  \S+: aws pricing get-products", output, re.M)) == 5  # each thing that bills


def product(usage_type, *usd, **attributes):
    """One entry of GetProducts' PriceList, as text in JSON."""
    dimensions = {str(n): {"unit": "Hrs", "pricePerUnit": {"USD": price}} for n, price in enumerate(usd)}
    return json.dumps({
        "product": {"attributes": {"usagetype": usage_type, **attributes}},
        "terms": {"OnDemand": {"term": {"priceDimensions": dimensions}}},
    })  # fmt: skip


FSX = {"fileSystemType": "Lustre", "storageType": "SSD", "throughputCapacity": "250"}
PRICE_LIST = {
    "Cluster:ml.m5.xlarge": [product("USW2-Cluster:ml.m5.xlarge", "0.2500000000")],
    "Cluster:ml.g5.24xlarge": [
        product("USW2-Cluster:ml.g5.24xlarge", "10.0000000000"),
        product("USW2-Cluster:ml.g5.24xlarge-Reserved", "7.0000000000"),
    ],
    "Lustre": [product("USW2-Storage.SSD.250", "0.2190000000", **FSX),
               product("USW2-Storage.SSD.2500", "9", **FSX | {"throughputCapacity": "2500"})],
    "NatGateway-Hours": [product("USW2-NatGateway-Hours", "0.0450000000"),
                         product("USW2-RegionalNatGateway-Hours", "0.9")],
    "PublicIPv4:InUseAddress": [product("USW2-PublicIPv4:InUseAddress", "0", "0.0050000000")],
}  # fmt: skip


@pytest.fixture
def price_list(monkeypatch):
    """AWS's price list, with a login; counts the questions."""
    asked = []

    def make_call(_, operation, arguments):
        assert operation == "GetProducts" and arguments["Filters"][0]["Value"] == "us-west-2"
        asked.append(arguments["Filters"][1]["Value"])
        return {"PriceList": PRICE_LIST[asked[-1]]}

    monkeypatch.setattr(BaseClient, "_make_api_call", make_call)
    return asked


def test_plan_sums_the_prices_of_aws_and_remembers_them(price_list, tmp_path, hyperpod):
    output = hyperpod("plan").out
    # 2 x 10 + 0.25 + 1200 x 0.219 / 730 + 0.045 + 0.005
    assert "20.660  USD an hour, 495.84 a day while all of it exists" in output and "not known" not in output
    assert f"prices: AWS's price list, read on {datetime.date.today()}" in output
    assert len(price_list) == 5 and hyperpod("plan").out == output and len(price_list) == 5
    # and tells what a training would cost: 2 nodes at 10 USD
    lines = hyperpod("plan", "--model_size", "650M", "--tokens", "10B").out.splitlines()
    assert any(line.startswith("650M on 2 x ml.g5.24xlarge (8 x A10G") for line in lines)
    (ddp,) = [line.split() for line in lines if line.startswith("DDP  ")]
    assert float(ddp[7].replace(",", "")) == pytest.approx(20 * float(ddp[6]), rel=0.01)
    assert lines[-1].startswith("MODEL_SIZE=650M sbatch --nodes=2 ")
    # the file stands above the list
    discount = hyperpod("plan", "--prices", priced(tmp_path, usd={"ml.g5.24xlarge": 8})).out
    assert "16.660  USD an hour" in discount and "made up, read on today; AWS's price list" in discount
    old = (datetime.date.today() - datetime.timedelta(days=8)).isoformat()
    (cache,) = tmp_path.glob("cache/esm2_hyperpod/prices-us-west-2.json")
    cache.write_text(cache.read_text().replace(str(datetime.date.today()), old))
    assert hyperpod("plan").out == output and len(price_list) == 10  # a week is over
    cache.write_text("{broken")
    assert hyperpod("plan").out == output and len(price_list) == 15


def test_a_price_that_is_not_clear_is_not_taken(price_list, monkeypatch, hyperpod):
    several = [product("USW2-Cluster:ml.g5.24xlarge", "10"), product("USW2-Cluster:ml.g5.24xlarge", "11")]
    monkeypatch.setitem(PRICE_LIST, "Cluster:ml.g5.24xlarge", several)
    output = hyperpod("plan").out
    assert (
        "not known  workers" in output
        and "15.84 a day while all of it exists, and what is not known" in output
    )
    assert output.count("aws pricing get-products") == 1


def priced(tmp_path, **changes):
    prices = yaml.safe_load((SETUP / "prices.yaml").read_text())
    numbers = dict.fromkeys(prices["usd"], 0.0) | {"ml.g5.24xlarge": 10.0, "fsx_250_gb_month": 0.73}
    path = tmp_path / "prices.yaml"
    path.write_text(
        yaml.safe_dump(prices | {"usd": numbers, "source": "made up", "read_on": "today"} | changes)
    )
    return path


def test_plan_sums_the_prices_it_is_given(tmp_path, hyperpod):
    output = hyperpod("plan", "--prices", priced(tmp_path)).out
    # 2 nodes at 10 an hour; 1,200 GB at 0.73 a month of 730 hours are 1.2 an hour
    assert "21.200  USD an hour, 508.80 a day" in output and "prices: made up, read on today" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "without source and read_on"),
        ({"region": "eu-west-1"}, "the prices are for eu-west-1"),
        ({"usd": {"ml.g5.24xlarge": "10 USD"}}, "is not a price"),
        ({"usd": {"ml.g5.24xlarge": -1}}, "is not a price"),
        ({"usd": None}, "must have the fields"),
    ],
)
def test_prices_that_cannot_be_trusted_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError) as refusal:
        load_prices(priced(tmp_path, **changes), "us-west-2")
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_no_price_is_shipped():
    prices = yaml.safe_load((SETUP / "prices.yaml").read_text())
    assert set(prices["usd"].values()) == {None} and prices["source"] is None


@pytest.fixture
def request_of_plan(hyperpod):
    return json.loads(hyperpod("plan", "--json").out)


def _set(*path):
    """A change to a request: the last of `path` is put at the place the others name."""
    *keys, last, value = path

    def change(request):
        for key in keys:
            request = request[key]
        request[last] = value

    return change


G = "InstanceGroups"
WRONG_REQUESTS = {
    "no cluster name": (lambda request: request.pop("ClusterName"), "ClusterName"),
    "empty name": (_set("ClusterName", ""), "ClusterName"),
    "pattern": (_set("ClusterName", "esm2-"), "ClusterName"),
    "too long": (_set("ClusterName", "x" * 64), "ClusterName"),
    "no groups": (_set(G, []), G),
    "misspelled field": (_set(G, 0, "InstanceTypo", "x"), "did you mean InstanceType?"),
    "count as text": (_set(G, 1, "InstanceCount", "2"), "must be of type integer"),
    "count as boolean": (_set(G, 1, "InstanceCount", True), "must be of type integer"),
    "too many nodes": (_set(G, 1, "InstanceCount", 6759), "at most 6758"),
    "unknown type": (_set(G, 1, "InstanceType", "ml.g5.25xlarge"), "did you mean"),
    "role that is none": (_set(G, 0, "ExecutionRole", "arn:aws:iam::1:role/short"), "ExecutionRole"),
    "worker as node type": (_set(G, 1, "SlurmConfig", "NodeType", "Worker"), "Controller, Login, Compute"),
    "strategy": (_set("Orchestrator", "Slurm", "SlurmConfigStrategy", "managed"), "Overwrite, Managed"),
    "fewest below none": (_set(G, 1, "MinInstanceCount", -1), "at least 0"),
    "two partitions": (_set(G, 1, "SlurmConfig", "PartitionNames", ["a", "b"]), "at most 1"),
    "threads": (_set(G, 1, "ThreadsPerCore", 3), "at most 2"),
    "mount path": (_set(G, 0, "InstanceStorageConfigs", 0, "FsxLustreConfig", "MountPath", "fsx"), "Path"),
    "dns name": (
        _set(G, 0, "InstanceStorageConfigs", 0, "FsxLustreConfig", "DnsName", "fsx.example.com"), "DnsName"),
    "disk of 0": (
        _set(G, 1, "InstanceStorageConfigs", [{"EbsVolumeConfig": {"VolumeSizeInGB": 0}}]), "at least 1"),
    "six security groups": (_set("VpcConfig", "SecurityGroupIds", ["sg-1"] * 6), "at most 5"),
    "provisioning": (_set("NodeProvisioningMode", "OnDemand"), "Continuous"),
    "tag with a semicolon": (_set("Tags", [{"Key": "a;b", "Value": "c"}]), "Tags[0].Key"),
}  # fmt: skip


def test_no_bad_request_gets_through(request_of_plan):
    assert request_problems("CreateCluster", request_of_plan) == []
    for mistake, (change, message) in WRONG_REQUESTS.items():
        wrong = copy.deepcopy(request_of_plan)
        change(wrong)
        lines = request_problems("CreateCluster", wrong)
        assert any(message in line for line in lines), (mistake, lines)


def test_options_reach_the_request(tmp_path):
    arn = PLAN_ARN.replace("us-east-1", "us-west-2")
    config = checked_config(
        planted(
            tmp_path,
            {
                "login": {"instance_type": "ml.m5.large"}, "workers.training_plan_arn": arn,
                "workers.local_disk_gb": 100,
                "options.deep_health_checks": True, "options.continuous_provisioning": False,
                "options.node_recovery": "None", "options.on_init_complete": None, "options.tags": {},
            },
        )
    )  # fmt: skip
    request = create_cluster_request(config, example_outputs(config))
    controller, login, workers = request[G]
    assert [g["SlurmConfig"]["NodeType"] for g in request[G]] == ["Controller", "Login", "Compute"]
    assert login["InstanceType"] == "ml.m5.large" and workers["TrainingPlanArn"] == arn
    assert workers["OnStartDeepHealthChecks"] == ["InstanceStress", "InstanceConnectivity"]
    assert request["NodeRecovery"] == "None" and "OnStartDeepHealthChecks" not in controller
    assert not {"NodeProvisioningMode", "Tags"} & set(request)
    assert request["Orchestrator"] == {"Slurm": {"SlurmConfigStrategy": "Managed"}}
    assert workers["InstanceStorageConfigs"][1] == {"EbsVolumeConfig": {"VolumeSizeInGB": 100}}
    assert not any("LifeCycleConfig" in group for group in request[G])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*SHIPPED, "count", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(ANYTHING)
def test_no_random_file_is_a_cluster_or_ends_in_another_exception(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "cluster.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError):
        checked_config(path)


def assert_that_aws_takes(request):
    """The service's model, and the rules of AWS's guide that the model does not hold (README, "Rules")."""
    shape = sagemaker_model().operation_model("CreateCluster").input_shape
    assert not ParamValidator().validate(request, shape).has_errors()
    assert request_problems("CreateCluster", request) == []
    continuous = request.get("NodeProvisioningMode") == "Continuous"
    assert request["VpcConfig"]
    assert ("SlurmConfigStrategy" in request["Orchestrator"]["Slurm"]) != continuous
    groups = {group["InstanceGroupName"]: group for group in request[G]}
    assert len(groups) == len(request[G])
    kinds = [group["SlurmConfig"]["NodeType"] for group in request[G]]
    assert kinds.count("Controller") == 1 and kinds.count("Login") <= 1
    assert groups["controller"]["InstanceCount"] == 1
    for group in groups.values():
        assert "InstanceType" in group and "InstanceRequirements" not in group
        assert ("PartitionNames" in group["SlurmConfig"]) == (group["SlurmConfig"]["NodeType"] == "Compute")
        if "MinInstanceCount" in group:
            assert continuous and group["MinInstanceCount"] <= group["InstanceCount"]
        storage = group["InstanceStorageConfigs"]
        assert all(len(item) == 1 for item in storage)
        assert [item["FsxLustreConfig"]["MountPath"] for item in storage if "FsxLustreConfig" in item] == [
            "/fsx"
        ]
        scripts = group.get("LifeCycleConfig", {"SourceS3Uri": "s3://sagemaker-", "OnInitComplete": ""})
        assert set(scripts) == {"SourceS3Uri", "OnInitComplete"}
        assert scripts["SourceS3Uri"].startswith("s3://sagemaker-")


EVERY_OPTION = [
    {},
    {"name": "another"},
    {"region": "eu-west-1", "availability_zone": "eu-west-1b"},
    {"workers.instance_type": "ml.p5.48xlarge"},
    {"workers.count": 0},
    {"workers.count": 4, "workers.min_count": 4},
    {"workers.local_disk_gb": 500},
    {"workers.training_plan_arn": PLAN_ARN.replace("us-east-1", "us-west-2")},
    {"other_workers": {"cpu": {"instance_type": "ml.c5.9xlarge", "count": 1}}},
    {
        "other_workers": {
            "big": {
                "instance_type": "ml.p5.48xlarge",
                "count": 2,
                "min_count": 2,
                "training_plan_arn": PLAN_ARN.replace("us-east-1", "us-west-2"),
            }
        }
    },
    {"controller.instance_type": "ml.c5.xlarge"},
    {"login": {"instance_type": "ml.m5.xlarge"}},
    {"fsx.size_gb": 4800},
    {"fsx.throughput": 1000},
    {"fsx.data_bucket": "our-proteins"},
    {"budget": {"email": "me@here.org", "usd_per_month": 500}},
    {"users": {"alice": {"uid": 2001, "key": KEY}}},
    {"options.vpc_cidr": "192.168.0.0/16"},
    {"options.node_recovery": "None"},
    {"options.continuous_provisioning": False},
    {"options.deep_health_checks": True},
    {"options.on_init_complete": None},
    {"options.on_init_complete": "s3://sagemaker-esm2-123456789012-us-west-2/a/b.sh"},
    {"observability": "prometheus"},
    {"observability": "grafana"},
    {"options.tags": {"project": "esm2", "owner": "me"}},
]


def test_plan_prints_a_request_that_aws_takes_for_every_option_in_its_turn(tmp_path, hyperpod):
    requests = []
    for changes in EVERY_OPTION:
        request = json.loads(hyperpod("plan", "--json", "--config", planted(tmp_path, changes)).out)
        assert_that_aws_takes(request)
        requests.append(json.dumps(request))
    # Each reaches the request, but for those of the stack.
    of_the_stack = ("fsx", "budget", "users", "options.vpc_cidr", "observability")
    same = [changes for changes, request in zip(EVERY_OPTION, requests) if request == requests[0]]
    assert [next(iter(changes), "").startswith(of_the_stack) for changes in same[1:]] == [True] * 8
    fields = {field for changes in EVERY_OPTION for field in changes}
    sections = ("workers", "controller", "fsx", "options")
    assert fields == {f for f in SHIPPED if f not in sections} | {
        f"{s}.{f}" for s in sections for f in SHIPPED[s]
    }


X86 = [name for name in accepted_types() if not is_arm(name)]
WITHOUT_GPU = st.sampled_from([name for name in X86 if not has_gpu(name)])
TAG = st.text("aZé09 _.:/=+-@", min_size=1, max_size=20)


@st.composite
def changes_to_every_field(draw):
    """A good value for every field of cluster.yaml, or for all but one; and which one, or None."""
    region = draw(st.sampled_from(["us-west-2", "eu-central-1", "ap-northeast-1"]))
    name = draw(st.text("abc019", min_size=1, max_size=25))
    bucket = f"s3://sagemaker-{name}-123456789012-{region}"
    script = draw(st.sampled_from([None, "on_init_complete.sh", f"{bucket}/a/b.sh"]))
    fields = {
        "name": st.just(name),
        "region": st.just(region),
        "availability_zone": st.sampled_from("abcd").map(lambda letter: region + letter),
        "workers.instance_type": st.sampled_from([kind for kind in X86 if has_gpu(kind)]),
        "workers.count": st.integers(0, 900),
        "workers.local_disk_gb": st.none() | st.integers(1, 16384),
        "budget": st.none() | st.just({"email": "me@here.org", "usd_per_month": 100}),
        "workers.training_plan_arn": st.sampled_from([None, PLAN_ARN.replace("us-east-1", region)]),
        "other_workers": st.dictionaries(
            st.sampled_from(["cpu", "big-ones"]),
            st.fixed_dictionaries({"instance_type": WITHOUT_GPU, "count": st.integers(0, 9)}),
        ),
        "controller.instance_type": WITHOUT_GPU,
        "login": st.none() | st.fixed_dictionaries({"instance_type": WITHOUT_GPU}),
        "fsx.size_gb": st.just(1200) | st.integers(1, 40).map(lambda n: 2400 * n),
        "fsx.throughput": st.sampled_from([125, 250, 500, 1000]),
        "fsx.data_bucket": st.sampled_from([None, "our-proteins", "a.b"]),
        "options.vpc_cidr": st.sampled_from(["10.1.0.0/16", "172.31.0.0/16", "192.168.0.0/16"]),
        "options.node_recovery": st.sampled_from(["Automatic", "None"]),
        "options.continuous_provisioning": st.booleans(),
        "options.deep_health_checks": st.booleans(),
        "options.on_init_complete": st.just(script),
        # Only a script of ours starts what sends metrics.
        "observability": st.sampled_from(
            [None, "prometheus", "grafana"] if script == "on_init_complete.sh" else [None]
        ),
        "options.tags": st.dictionaries(TAG, TAG, max_size=3),
    }
    wild = draw(st.none() | st.sampled_from(list(fields)))
    if wild:
        fields[wild] = ANYTHING
    return {field: draw(values) for field, values in fields.items()}, wild


@settings(max_examples=50, deadline=None)
@given(changes_to_every_field())
def test_what_is_accepted_renders_a_request_that_hyperpod_takes(tmp_path_factory, drawn):
    """Good values are accepted; with anything at all in one of the fields, the file is refused or fine."""
    changes, wild = drawn
    path = planted(tmp_path_factory.mktemp("good"), changes)
    try:
        config = checked_config(path)
    except UserError:
        assert wild
        return
    request = create_cluster_request(config, example_outputs(config))
    assert_that_aws_takes(request)
    kinds = [group["SlurmConfig"]["NodeType"] for group in request[G]]
    compute = ["Compute"] * (1 + len(config.other_workers))
    assert kinds == ["Controller", *["Login"] * bool(config.login), *compute]
