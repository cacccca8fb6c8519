"""The CloudFormation template and the request, judged by cfn-lint; the role, judged by IAM's own tables."""

import copy
import dataclasses
import fnmatch
import json
import re
from pathlib import Path

import cfnlint
import cfnlint.decode.cfn_yaml
import pytest
from cfnlint.api import ManualArgs, lint
from cfnlint.schema import PROVIDER_SCHEMA_MANAGER
from helpers.commands import ROOT

from esm2_hyperpod.cluster.checks import checked_config
from esm2_hyperpod.cluster.config import Budget
from esm2_hyperpod.cluster.export import ASSOCIATION
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
READING_METRICS = ("cloudwatch:GetMetricData", "cloudwatch:ListMetrics")  # there, too, and they only read


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
    policies += RESOURCES["GrafanaRole"]["Properties"]["Policies"]
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
        if "*" in listed(statement["Resource"]) and narrower and action not in READING_METRICS:
            assert LIMITED_BY_CONDITION[action] in statement["Condition"]["StringEquals"]
        if "*" not in listed(statement["Resource"]):
            assert narrower, f"{action} takes no resource, so a narrower one would never match"


def test_a_star_resource_is_explained_where_it_stands():
    stars = [s["Sid"] for s in statements() if "*" in listed(s["Resource"])]
    assert sorted(stars) == [
        "DescribeNetwork", "LogInToRegistry", "OpenShellSessions", "ReadMetricsOfFsx", "WriteClusterMetrics"
    ]  # fmt: skip
    for sid in stars:
        assert f"- Sid: {sid} # " in TEXT


OPERATOR = json.loads((ROOT / "cluster_setup" / "operator_policy.json").read_text())["Statement"]
# What CloudFormation's handlers may use for properties that the template does not have.
FOR_OTHER_PROPERTIES = (
    "AcceptAddressTransfer AttachVpnGateway DetachVpnGateway CreateVpcEncryptionControl AllowMultiRegion "
    "CreateServiceNetworkVpcEndpointAssociation DescribeServiceNetworkVpcEndpointAssociation "
    "GetBillingViewData CreateAlertManagerDefinition DeleteAlertManagerDefinition CreateLoggingConfiguration "
    "DeleteLoggingConfiguration CreateQueryLoggingConfiguration DeleteQueryLoggingConfiguration "
    "UpdateWorkspaceConfiguration CreateLogDelivery GetLogDelivery ListLogDeliveries DeleteLogDelivery "
    "PutResourcePolicy CreateGrant Decrypt GenerateDataKey GetManagedPrefixListEntries"
).split()


def allowed(action: str, resource: str | None = None) -> bool:
    """Whether who runs hyperpod.py may do an action, on a resource if one is given."""
    return any(
        any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in listed(s["Action"]))
        and (resource is None or any(fnmatch.fnmatchcase(resource, p) for p in listed(s["Resource"])))
        for s in OPERATOR
    )


def test_the_operators_policy_allows_what_cloudformation_does_to_make_and_remove_the_stack():
    """CloudFormation acts with the caller's permissions; its resource types say which they use."""
    needed = set()
    for kind in {r["Type"] for r in RESOURCES.values()} - {"AWS::S3::Bucket"}:  # that one lists all of S3
        handlers = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-west-2", kind).schema.get("handlers", {})
        for event in ("create", "read", "delete"):
            needed |= set(handlers.get(event, {}).get("permissions", []))
    needed = {action for action in needed if action.split(":")[1] not in FOR_OTHER_PROPERTIES}
    assert len(needed) > 60 and [action for action in sorted(needed) if not allowed(action)] == []
    account = "123456789012"
    for action, resource in {
        "iam:CreateRole": f"arn:aws:iam::{account}:role/esm2-hyperpod-ExecutionRole-1A2B3C",
        "iam:PassRole": f"arn:aws:iam::{account}:role/esm2-hyperpod-ExecutionRole-1A2B3C",
        "s3:CreateBucket": f"arn:aws:s3:::sagemaker-esm2-{account}-us-west-2",
        "s3:PutObject": f"arn:aws:s3:::sagemaker-esm2-{account}-us-west-2/lifecycle/on_init_complete.sh",
        "cloudformation:CreateStack": f"arn:aws:cloudformation:us-west-2:{account}:stack/esm2-hyperpod/1",
        "logs:DeleteLogGroup": f"arn:aws:logs:us-west-2:{account}:log-group:/aws/sagemaker/Clusters/esm2/abc",
        "iam:TagRole": f"arn:aws:iam::{account}:role/esm2-hyperpod-GrafanaRole-1A2B3C",
        "ssm:StartSession": f"arn:aws:sagemaker:us-west-2:{account}:cluster/abcdefghij12",
    }.items():
        assert allowed(action, resource), action
    assert len("".join(json.dumps(OPERATOR).split())) + 40 < 6144  # IAM counts a policy without white space
    assert not allowed("iam:CreateRole", f"arn:aws:iam::{account}:role/Admin")
    assert not allowed("s3:GetObject", "arn:aws:s3:::somebody-elses/secret")


@pytest.mark.parametrize("statement", OPERATOR, ids=lambda s: s["Sid"])
def test_the_operators_policy_names_actions_that_exist(statement):
    for action in listed(statement["Action"]):
        service, _, name = action.partition(":")
        known = IAM[service]["Actions"]
        assert fnmatch.filter(known, name.lower()), f"{action} is no action"
        assert name != "*"


def test_the_data_bucket_is_linked_only_where_there_is_one_and_never_deleted():
    links = {name: r for name, r in RESOURCES.items() if r["Type"] == "AWS::FSx::DataRepositoryAssociation"}
    assert set(links) == {"DataFromBucket", ASSOCIATION}
    assert {r["Condition"] for r in links.values()} == {"HasDataBucket"}
    assert "AutoExportPolicy" not in links["DataFromBucket"]["Properties"]["S3"]
    assert links[ASSOCIATION]["Properties"]["S3"] == {"AutoExportPolicy": {"Events": ["NEW", "CHANGED"]}}
    assert [name for name, r in RESOURCES.items() if r["Type"] == "AWS::S3::Bucket"] == ["LifecycleBucket"]


def test_workspaces_for_metrics_are_made_only_where_asked_for_and_read_only_what_they_show():
    workspaces = {name: r for name, r in RESOURCES.items() if r["Type"].endswith("::Workspace")}
    assert {name: r["Condition"] for name, r in workspaces.items()} == {
        "PrometheusWorkspace": "HasPrometheus", "GrafanaWorkspace": "HasGrafana"
    }  # fmt: skip
    assert TEMPLATE["Parameters"]["Observability"]["Default"] == "" and CHANGEABLE["Observability"] == ""
    write, grafana = RESOURCES["ObservabilityPolicy"]["Properties"], RESOURCES["GrafanaRole"]["Properties"]
    arn = {"Fn::GetAtt": ["PrometheusWorkspace", "Arn"]}
    remote_write = write["PolicyDocument"]["Statement"][0]
    assert (remote_write["Action"], remote_write["Resource"]) == ("aps:RemoteWrite", arn)
    (trust,) = grafana["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "grafana.amazonaws.com"} and trust["Condition"]
    reading = [
        action for s in grafana["Policies"][0]["PolicyDocument"]["Statement"] for action in s["Action"]
    ]
    assert all(re.match(r"(aps|cloudwatch):(Get|List|Query)", action) for action in reading), reading
    for asked in ("prometheus", "grafana"):
        assert parameters(dataclasses.replace(CONFIG, observability=asked))["Observability"] == asked


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
