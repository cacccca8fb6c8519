"""The CloudFormation template and the request, judged by cfn-lint; the role, judged by IAM's own tables."""

import copy
import dataclasses
import json
from pathlib import Path

import cfnlint
import cfnlint.decode.cfn_yaml
import pytest
from cfnlint.api import ManualArgs, lint
from helpers.commands import ROOT

from esm2_hyperpod.cluster.checks import checked_config
from esm2_hyperpod.cluster.config import Budget
from esm2_hyperpod.cluster.request import StackOutputs, create_cluster_request, example_outputs
from esm2_hyperpod.cluster.rules import subnets
from esm2_hyperpod.cluster.stack import CHANGEABLE, parameters

TEXT = (ROOT / "cluster_setup" / "network_and_storage.yaml").read_text()
TEMPLATE = cfnlint.decode.cfn_yaml.loads(TEXT)
RESOURCES = TEMPLATE["Resources"]
CONFIG = checked_config(ROOT / "cluster_setup" / "cluster.yaml")
# IAM's table of which actions take which resources, as cfn-lint ships it.
IAM = json.loads((Path(cfnlint.__file__).parent / "data/AdditionalSpecs/Policies.json").read_text())
# The table names a resource for it that metrics do not have; its namespace condition is the limit.
LIMITED_BY_CONDITION = {"cloudwatch:PutMetricData": "cloudwatch:namespace"}


def lint_errors(template: str) -> list[str]:
    return [str(match) for match in lint(template, config=ManualArgs(regions=["us-west-2", "us-east-1"]))]


def as_template(request) -> str:
    return json.dumps({"Resources": {"Cluster": {"Type": "AWS::SageMaker::Cluster", "Properties": request}}})


def test_cfn_lint_finds_nothing_in_the_template():
    assert lint_errors(TEXT) == []


def test_cfn_lint_finds_nothing_in_the_request_and_would_find_a_mistake():
    request = create_cluster_request(CONFIG, example_outputs(CONFIG))
    assert lint_errors(as_template(request)) == []
    wrong = copy.deepcopy(request)
    wrong["InstanceGroups"][1]["SlurmConfig"]["NodeType"] = "Worker"
    wrong["NodeRecovery"] = "Sometimes"
    assert len(lint_errors(as_template(wrong))) == 2


def test_the_template_and_the_code_agree():
    assert set(TEMPLATE["Parameters"]) == set(parameters(CONFIG))
    assert set(TEMPLATE["Outputs"]) == set(StackOutputs.__dataclass_fields__)
    defaults = {name: str(p["Default"]) for name, p in TEMPLATE["Parameters"].items() if "Default" in p}
    assert {name: parameters(CONFIG)[name] for name in defaults} == defaults


def test_a_budget_is_made_only_for_an_address():
    budget = RESOURCES["Budget"]
    assert TEMPLATE["Parameters"]["BudgetEmail"]["Default"] == "" and budget["Condition"] == "HasBudget"
    subscribers = budget["Properties"]["NotificationsWithSubscribers"]
    assert all(n["Subscribers"] == [{"SubscriptionType": "EMAIL", "Address": {"Ref": "BudgetEmail"}}]
               for n in subscribers)  # fmt: skip
    asked = dataclasses.replace(CONFIG, budget=Budget("me@here.org", 500))
    assert parameters(asked)["BudgetEmail"] == "me@here.org" and parameters(asked)["BudgetUsd"] == "500"
    assert {"BudgetEmail", "BudgetUsd"} <= CHANGEABLE.keys()


@pytest.mark.parametrize(
    ("network", "private", "public"),
    [
        ("10.1.0.0/16", "10.1.0.0/17", "10.1.128.0/28"),
        ("192.168.4.0/24", "192.168.4.0/25", "192.168.4.128/28"),
    ],
)
def test_the_network_is_halved(network, private, public):
    assert subnets(network) == (private, public)


def statements():
    policies = RESOURCES["ExecutionRole"]["Properties"]["Policies"]
    policies = [*policies, RESOURCES["ObservabilityPolicy"]["Properties"]]
    return [s for policy in policies for s in policy["PolicyDocument"]["Statement"]]


def listed(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("statement", statements(), ids=lambda s: s["Sid"])
def test_the_role_may_do_no_more_than_it_needs(statement):
    assert statement["Effect"] == "Allow"
    for action in listed(statement["Action"]):
        service, _, name = action.partition(":")
        assert "*" not in action
        assert name.lower() in IAM[service]["Actions"], f"{action} is no action of {service}"
        narrower = IAM[service]["Actions"][name.lower()].get("Resources")
        if "*" in listed(statement["Resource"]) and narrower:
            assert LIMITED_BY_CONDITION[action] in statement["Condition"]["StringEquals"]
        if "*" not in listed(statement["Resource"]):
            assert narrower, f"{action} takes no resource, so a narrower one would never match"


def test_a_star_resource_is_explained_where_it_stands():
    stars = [s["Sid"] for s in statements() if "*" in listed(s["Resource"])]
    assert sorted(stars) == ["DescribeNetwork", "LogInToRegistry", "OpenShellSessions", "WriteClusterMetrics"]
    for sid in stars:
        assert f"- Sid: {sid} # " in TEXT


def test_only_sagemaker_may_take_the_role():
    (trust,) = RESOURCES["ExecutionRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}


def test_nothing_comes_in_from_outside_and_nodes_reach_each_other_both_ways():
    into = [r["Properties"] for r in RESOURCES.values() if r["Type"] == "AWS::EC2::SecurityGroupIngress"]
    out = [r["Properties"] for r in RESOURCES.values() if r["Type"] == "AWS::EC2::SecurityGroupEgress"]
    group = {"Ref": "SecurityGroup"}
    assert [(i["SourceSecurityGroupId"], i["IpProtocol"]) for i in into] == [(group, "-1")]
    assert [(o["DestinationSecurityGroupId"], o["IpProtocol"]) for o in out] == [(group, "-1")]
    assert "SecurityGroupIngress" not in RESOURCES["SecurityGroup"]["Properties"]
    assert not any("MapPublicIpOnLaunch" in r.get("Properties", {}) for r in RESOURCES.values())


def test_storage_is_private_encrypted_in_the_nodes_subnet_and_goes_with_the_stack():
    file_system, bucket = RESOURCES["FileSystem"]["Properties"], RESOURCES["LifecycleBucket"]["Properties"]
    assert file_system["LustreConfiguration"]["DeploymentType"] == "PERSISTENT_2"
    assert file_system["SubnetIds"] == [{"Ref": "PrivateSubnet"}]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True} and bucket["BucketEncryption"]
    assert bucket["BucketName"]["Fn::Sub"].startswith("sagemaker-")
    assert not [name for name, r in RESOURCES.items() if r.get("DeletionPolicy", "Delete") != "Delete"]
