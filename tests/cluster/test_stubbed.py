"""What moto cannot do: waiting, failing, scaling; by botocore's Stubber, which checks each answer's shape."""

import dataclasses
import datetime

import boto3
import pytest
from botocore.stub import ANY, Stubber
from helpers.commands import ROOT

from esm2_hyperpod.cluster import aws as aws_module
from esm2_hyperpod.cluster import cluster, removal, stack
from esm2_hyperpod.cluster.aws import Aws, readable_errors
from esm2_hyperpod.cluster.checks import checked_config, preflight
from esm2_hyperpod.cluster.export import ASSOCIATION, export_runs
from esm2_hyperpod.cluster.request import create_cluster_request, example_outputs
from esm2_hyperpod.cluster.training_plan import training_plan_problems
from esm2_hyperpod.errors import UserError

CONFIG = checked_config(ROOT / "cluster_setup" / "cluster.yaml")
REQUEST = create_cluster_request(CONFIG, example_outputs(CONFIG))
TEMPLATE = ROOT / "cluster_setup" / "network_and_storage.yaml"
ARN = "arn:aws:sagemaker:us-west-2:123456789012:cluster/abcdefghij12"
NOW = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.timezone.utc)
EVENT = "00000000-0000-0000-0000-000000000001"


@pytest.fixture(scope="module")
def clients():
    """Made once for all tests: a client reads its service's model, which takes longer than a test."""
    session = boto3.Session("testing", "testing", region_name="us-west-2")
    services = ("sagemaker", "cloudformation", "ec2", "service-quotas", "fsx")
    return {service: session.client(service) for service in services}


@pytest.fixture
def aws(monkeypatch, clients):
    """An Aws whose clients answer only what a test has queued, and whose waits take no time."""
    monkeypatch.setattr(aws_module, "POLL_SECONDS", 0)
    connection = Aws("us-west-2")
    connection._clients = {(service, "us-west-2"): client for service, client in clients.items()}
    connection.stubs = {service: Stubber(client) for service, client in clients.items()}
    for stub in connection.stubs.values():
        stub.activate()
    yield connection
    for stub in connection.stubs.values():
        stub.deactivate()
    for stub in connection.stubs.values():
        stub.assert_no_pending_responses()


def queue_cluster(aws, status, workers=(2, 2), message=None, continuous=False, software=None):
    """Queue the answers to find_cluster: a cluster in `status` with (current, wanted) workers, or none."""
    stub = aws.stubs["sagemaker"]
    summary = {"ClusterArn": ARN, "ClusterName": "esm2", "CreationTime": NOW, "ClusterStatus": status}
    stub.add_response(
        "list_clusters", {"ClusterSummaries": [summary] if status else []}, {"NameContains": "esm2"}
    )
    if status is None:
        return
    groups = []
    for group, (current, target) in zip(REQUEST["InstanceGroups"], [(1, 1), workers], strict=True):
        described = {key: value for key, value in group.items() if key != "InstanceCount"}
        groups.append(described | {"CurrentCount": current, "TargetCount": target, "Status": "InService"})
    for group, state in zip(groups, software or ()):
        group["SoftwareUpdateStatus"] = state
    answer = {"ClusterArn": ARN, "ClusterName": "esm2", "ClusterStatus": status, "InstanceGroups": groups}
    if message:
        answer["FailureMessage"] = message
    if continuous:
        answer["NodeProvisioningMode"] = "Continuous"
    stub.add_response("describe_cluster", answer, {"ClusterName": "esm2"})


def queue_nodes(aws, *states, running=2):
    """Queue the answer to list_nodes: a running controller, `running` workers, and workers in other states.

    A state that holds a space is the message of a node that failed.
    """
    everyone = [
        ("controller", "Running"),
        *[("workers", "Running")] * running,
        *(("workers", s) for s in states),
    ]
    nodes = [
        {
            "InstanceGroupName": group, "InstanceId": f"i-{n:017x}", "InstanceType": "ml.g5.24xlarge",
            "LaunchTime": NOW,
            "InstanceStatus": {"Status": "Failure", "Message": state} if " " in state else {"Status": state},
        }
        for n, (group, state) in enumerate(everyone)
    ]  # fmt: skip
    aws.stubs["sagemaker"].add_response(
        "list_cluster_nodes", {"ClusterNodeSummaries": nodes}, {"ClusterName": "esm2"}
    )


def test_create_waits_until_every_node_is_there(aws, capsys):
    queue_cluster(aws, None)
    aws.stubs["sagemaker"].add_response("create_cluster", {"ClusterArn": ARN}, REQUEST)
    for status, workers, running in [
        ("Creating", (0, 2), 0),
        ("InService", (2, 2), 1),
        ("InService", (2, 2), 2),
    ]:
        queue_cluster(aws, status, workers)
        queue_nodes(aws, *["SystemUpdating"] * (workers[0] - running), running=running)
    cluster.ensure_cluster(aws, REQUEST)
    output = capsys.readouterr().out
    assert "Creating; running nodes: controller 1/1, workers 0/2" in output
    assert "InService; running nodes: controller 1/1, workers 1/2" in output  # there, but not running yet


def test_a_minimum_that_aws_did_not_reach_ends_the_wait(aws):
    """AWS's page on continuous provisioning: after 3 hours MinCount and TargetCount become 0."""
    request = create_cluster_request(
        dataclasses.replace(CONFIG, workers=dataclasses.replace(CONFIG.workers, min_count=2)),
        example_outputs(CONFIG),
    )
    queue_cluster(aws, None)
    aws.stubs["sagemaker"].add_response("create_cluster", {"ClusterArn": ARN}, request)
    queue_cluster(aws, "InService", (0, 0))
    queue_nodes(aws, running=0)
    with pytest.raises(
        UserError, match=r"workers\.min_count = 2 nodes in 3 hours.*scale --group workers --count N"
    ):
        cluster.ensure_cluster(aws, request)


def test_no_workers_keep_no_minimum():
    described = REQUEST["InstanceGroups"][1] | {"MinCount": 2, "CurrentCount": 2, "TargetCount": 2}
    none = cluster.specification(described, 0)
    assert (none["InstanceCount"], none["MinInstanceCount"]) == (0, 0)
    assert cluster.specification(described, 5)["MinInstanceCount"] == 2


def test_a_cluster_made_by_another_run_in_the_meantime_is_taken_over(aws):
    queue_cluster(aws, None)
    aws.stubs["sagemaker"].add_client_error("create_cluster", "ResourceInUse")
    queue_cluster(aws, "InService")
    queue_nodes(aws)
    cluster.ensure_cluster(aws, REQUEST)


def test_a_failed_creation_tells_every_reason_aws_has_and_where_the_logs_are(aws):
    queue_cluster(aws, None)
    aws.stubs["sagemaker"].add_response("create_cluster", {"ClusterArn": ARN}, REQUEST)
    queue_cluster(aws, "Failed", message="Instance group failed", continuous=True)
    common = {"EventId": EVENT, "ClusterArn": ARN, "ClusterName": "esm2", "EventTime": NOW}
    event = common | {"ResourceType": "Instance", "EventLevel": "Error", "InstanceGroupName": "workers"}
    calm = common | {"ResourceType": "Cluster", "EventLevel": "Info", "Description": "all is well"}
    queue_nodes(aws, "Lifecycle scripts did not run successfully", running=0)
    aws.stubs["sagemaker"].add_response("list_cluster_events", {"Events": [calm, event]}, LATEST_EVENTS)
    message = "We currently do not have sufficient\n capacity"
    detail = event | {"EventDetails": {"EventMetadata": {"InstanceGroup": {"FailureMessage": message}}}}
    aws.stubs["sagemaker"].add_response(
        "describe_cluster_event", {"EventDetails": detail}, {"ClusterName": "esm2", "EventId": EVENT}
    )
    with pytest.raises(UserError) as failure:
        cluster.ensure_cluster(aws, REQUEST)
    headline, *reasons = str(failure.value).splitlines()
    assert "esm2: Failed" in headline and "delete --keep_stack" in headline
    assert [reason.strip() for reason in reasons] == [
        "Instance group failed",
        "03:04 workers: We currently do not have sufficient capacity",
        "node i-00000000000000001 of workers: Lifecycle scripts did not run successfully",
        "set-up logs of the nodes: aws logs tail /aws/sagemaker/Clusters/esm2/abcdefghij12 "
        "--region us-west-2",
    ]


class AnHourAgo:
    """Equal to the time an hour ago, give or take some minutes: older errors are not asked for."""

    def __eq__(self, other):
        age = datetime.datetime.now(datetime.timezone.utc) - other
        return datetime.timedelta(minutes=55) < age < datetime.timedelta(minutes=65)


LATEST_EVENTS = {"ClusterName": "esm2", "SortBy": "EventTime", "SortOrder": "Descending", "MaxResults": 100,
                 "EventTimeAfter": AnHourAgo()}  # fmt: skip


def test_events_that_may_not_be_read_do_not_end_the_wait(aws, capsys):
    queue_cluster(aws, "InService", (1, 2), continuous=True)
    queue_cluster(aws, "InService", (1, 2), continuous=True)
    queue_nodes(aws, running=1)
    aws.stubs["sagemaker"].add_client_error("list_cluster_events", "AccessDeniedException")
    queue_cluster(aws, "InService")
    queue_nodes(aws)
    cluster.ensure_cluster(aws, REQUEST)
    assert "cannot read the cluster's events: AccessDeniedException" in capsys.readouterr().out


def test_a_cluster_on_its_way_out_is_waited_for_then_made(aws):
    queue_cluster(aws, "Deleting")
    queue_cluster(aws, "Deleting")
    queue_cluster(aws, None)
    aws.stubs["sagemaker"].add_response("create_cluster", {"ClusterArn": ARN}, REQUEST)
    queue_cluster(aws, "InService")
    queue_nodes(aws)
    cluster.ensure_cluster(aws, REQUEST)


def test_a_cluster_of_other_machines_is_refused(aws):
    other = create_cluster_request(CONFIG, example_outputs(CONFIG))
    other["InstanceGroups"][1]["InstanceType"] = "ml.p5.48xlarge"
    queue_cluster(aws, "InService")
    with pytest.raises(UserError, match=r"set cluster\.yaml back"):
        cluster.ensure_cluster(aws, other)


def test_scaling_sends_the_group_as_it_is_with_another_count(aws, capsys):
    queue_cluster(aws, "InService", (2, 2))
    group = REQUEST["InstanceGroups"][1] | {"InstanceCount": 5}
    aws.stubs["sagemaker"].add_response(
        "update_cluster", {"ClusterArn": ARN}, {"ClusterName": "esm2", "InstanceGroups": [group]}
    )
    for status, workers in [("InService", (2, 2)), ("Updating", (3, 5)), ("InService", (5, 5))]:
        queue_cluster(aws, status, workers)  # the first answer is older than the change
        queue_nodes(aws, running=workers[0])
    cluster.change_workers(aws, "esm2", "workers", 5, dry_run=False)
    assert "InService; running nodes: controller 1/1, workers 5/5" in capsys.readouterr().out


def test_scaling_to_what_is_there_or_without_a_cluster_sends_nothing(aws, capsys):
    queue_cluster(aws, "InService", (2, 2))
    cluster.change_workers(aws, "esm2", "workers", 2, dry_run=False)
    assert "already has 2 workers" in capsys.readouterr().out
    queue_cluster(aws, None)
    with pytest.raises(UserError, match=r"hyperpod\.py create"):
        cluster.change_workers(aws, "esm2", "workers", 3, dry_run=False)


def test_an_update_is_waited_for_group_by_group_and_a_rollback_is_an_error(aws, capsys):
    """The cluster is InService before the first group begins."""
    stub = aws.stubs["sagemaker"]
    stub.add_response("update_cluster_software", {"ClusterArn": ARN}, {"ClusterName": "esm2"})
    for states in (("Pending", "Pending"), ("Succeeded", "InProgress"), ("Succeeded", "Succeeded")):
        queue_cluster(aws, "InService", software=states)
    queue_cluster(aws, "InService")
    queue_nodes(aws)
    cluster.update_software(aws, "esm2")
    assert "controller Succeeded, workers InProgress" in capsys.readouterr().out
    stub.add_response("update_cluster_software", {"ClusterArn": ARN}, {"ClusterName": "esm2"})
    queue_cluster(aws, "InService", software=("Succeeded", "RollbackInProgress"))
    with pytest.raises(UserError, match=r"the update failed \(workers: RollbackInProgress\)"):
        cluster.update_software(aws, "esm2")


def test_a_health_check_of_one_node_has_no_peer_to_connect_to(aws):
    for nodes, checks in (
        (["i-00000000000000001"], ["InstanceStress"]),
        (["i-00000000000000001", "i-00000000000000002"], ["InstanceStress", "InstanceConnectivity"]),
    ):
        asked = {"InstanceGroupName": "workers", "InstanceIds": nodes, "DeepHealthChecks": checks}
        aws.stubs["sagemaker"].add_response(
            "start_cluster_health_check",
            {"ClusterArn": ARN},
            {"ClusterName": "esm2", "DeepHealthCheckConfigurations": [asked]},
        )
        cluster.start_health_check(aws, "esm2", "workers", nodes)


def test_a_wait_without_end_says_how_to_go_on(aws, monkeypatch):
    monkeypatch.setattr(cluster, "CREATE_MINUTES", 0)
    queue_cluster(aws, "Creating", (0, 2))
    queue_cluster(aws, "Creating", (0, 2))
    queue_nodes(aws, running=0)
    with pytest.raises(UserError, match=r"still: cluster esm2: Creating.*hyperpod\.py status"):
        cluster.ensure_cluster(aws, REQUEST)


def queue_stack(aws, status, config=CONFIG):
    made_with = [{"ParameterKey": k, "ParameterValue": v} for k, v in stack.parameters(config).items()]
    outputs = [{"OutputKey": k, "OutputValue": v} for k, v in vars(example_outputs(config)).items()]
    answer = {
        "StackId": "arn:aws:cloudformation:us-west-2:123456789012:stack/esm2-hyperpod/1", "CreationTime": NOW,
        "StackName": "esm2-hyperpod", "StackStatus": status, "Parameters": made_with, "Outputs": outputs,
    }  # fmt: skip
    aws.stubs["cloudformation"].add_response("describe_stacks", {"Stacks": [answer]}, {"StackName": ANY})


def queue_no_stack(aws):
    aws.stubs["cloudformation"].add_client_error(
        "describe_stacks", "ValidationError", "Stack with id esm2-hyperpod does not exist"
    )


def test_a_stack_that_failed_tells_its_first_reason(aws):
    stub = aws.stubs["cloudformation"]
    queue_no_stack(aws)
    stub.add_response("create_stack", {"StackId": "x"})
    queue_stack(aws, "CREATE_IN_PROGRESS")
    stub.add_response("describe_stack_resources", {"StackResources": []})
    queue_stack(aws, "ROLLBACK_IN_PROGRESS")
    reasons = [
        ("NatGateway", "Resource creation cancelled"),
        ("NatAddress", "maximum number of addresses reached"),
    ]
    events = [
        {
            "StackId": "x", "EventId": name, "StackName": "esm2-hyperpod", "Timestamp": NOW,
            "LogicalResourceId": name, "ResourceStatus": "CREATE_FAILED", "ResourceStatusReason": reason,
        }
        for name, reason in reasons
    ]  # fmt: skip
    stub.add_response("describe_stack_events", {"StackEvents": events})
    with pytest.raises(
        UserError, match="ROLLBACK_IN_PROGRESS: NatAddress: maximum number of addresses reached"
    ):
        stack.ensure_stack(aws, CONFIG, TEMPLATE)


def test_what_a_failed_stack_left_is_removed_before_the_next_try(aws):
    stub = aws.stubs["cloudformation"]
    queue_stack(aws, "ROLLBACK_COMPLETE")
    queue_stack(aws, "ROLLBACK_COMPLETE")
    stub.add_response("delete_stack", {}, {"StackName": "esm2-hyperpod"})
    queue_stack(aws, "DELETE_IN_PROGRESS")
    queue_stack(aws, "DELETE_COMPLETE")
    stub.add_response("create_stack", {"StackId": "x"})
    queue_stack(aws, "CREATE_COMPLETE")
    queue_stack(aws, "CREATE_COMPLETE")
    assert stack.ensure_stack(aws, CONFIG, TEMPLATE) == example_outputs(CONFIG)


def test_a_stack_that_will_not_go_says_why_and_that_it_bills(aws):
    stub = aws.stubs["cloudformation"]
    queue_stack(aws, "CREATE_COMPLETE")
    stub.add_response("delete_stack", {})
    queue_stack(aws, "DELETE_FAILED")
    event = {
        "StackId": "x", "EventId": "1", "StackName": "esm2-hyperpod", "Timestamp": NOW,
        "LogicalResourceId": "Vpc", "ResourceStatus": "DELETE_FAILED",
        "ResourceStatusReason": "has dependencies",
    }  # fmt: skip
    stub.add_response("describe_stack_events", {"StackEvents": [event]})
    with pytest.raises(UserError, match="still bills: Vpc: has dependencies"):
        stack.delete_stack(aws, "esm2-hyperpod")


def test_what_may_not_be_read_is_said_and_does_not_stop(aws, capsys):
    offer = {"InstanceTypeOfferings": [{"Location": "us-west-2b"}]}
    aws.stubs["ec2"].add_response("describe_instance_type_offerings", offer)
    aws.stubs["ec2"].add_client_error("describe_instance_type_offerings", "UnauthorizedOperation")
    for _ in range(4):  # two types, and the nodes of one and of all clusters
        aws.stubs["service-quotas"].add_client_error("list_service_quotas", "AccessDeniedException")
    preflight(aws, CONFIG)
    zone, *quotas = capsys.readouterr().out.splitlines()
    assert zone == "the zone: not checked: DescribeInstanceTypeOfferings: UnauthorizedOperation"
    assert quotas[0] == (
        "quota 'ml.g5.24xlarge for cluster usage': not checked: ListServiceQuotas: AccessDeniedException"
    )
    assert len(quotas) == 4


def task(lifecycle, name="task-0123456789abcdef0", **counts):
    return {"TaskId": name, "Lifecycle": lifecycle, "Type": "EXPORT_TO_REPOSITORY", "CreationTime": NOW,
            "Status": counts}  # fmt: skip


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (task("SUCCEEDED", TotalCount=7, SucceededCount=7, FailedCount=0), None),
        (task("SUCCEEDED", TotalCount=7, SucceededCount=6, FailedCount=1), "1 files failed"),
        (task("FAILED") | {"FailureDetails": {"Message": "no access"}}, "FAILED: no access"),
    ],
)
def test_runs_are_in_the_bucket_before_the_file_system_is_deleted(aws, capsys, end, error):
    """An export of before is waited for; then one of our own, since files may have been written after it."""
    stub, ours, earlier = aws.stubs["fsx"], "task-0123456789abcdef0", "task-00000000000000001"
    asked = {"Filters": [{"Name": "file-system-id", "Values": ["fs-0123456789abcdef0"]},
                         {"Name": "task-lifecycle", "Values": ["PENDING", "EXECUTING"]}]}  # fmt: skip
    tasks = [task("EXECUTING", earlier)]
    stub.add_response("describe_data_repository_tasks", {"DataRepositoryTasks": tasks}, asked)
    ended = {"DataRepositoryTasks": [task("SUCCEEDED", earlier)]}
    stub.add_response("describe_data_repository_tasks", ended, {"TaskIds": [earlier]})
    request = {"FileSystemId": "fs-0123456789abcdef0", "Type": "EXPORT_TO_REPOSITORY", "Paths": ["runs"],
               "Report": {"Enabled": False}}  # fmt: skip
    stub.add_response("create_data_repository_task", {"DataRepositoryTask": task("PENDING")}, request)
    for state in (task("EXECUTING", TotalCount=7, SucceededCount=3), end):
        stub.add_response(
            "describe_data_repository_tasks", {"DataRepositoryTasks": [state]}, {"TaskIds": [ours]}
        )
    if error is None:
        export_runs(aws, "fs-0123456789abcdef0")
    else:
        with pytest.raises(UserError, match=rf"{error}.*the file system was not deleted.*--without_export"):
            export_runs(aws, "fs-0123456789abcdef0")
    assert "export: EXECUTING, 3 of 7 files" in capsys.readouterr().out


def test_delete_exports_once_the_nodes_are_gone_and_stops_if_it_cannot(monkeypatch):
    done = []
    for name in ("delete_cluster", "_empty_bucket", "delete_stack"):
        monkeypatch.setattr(removal, name, lambda *_, name=name: done.append(name))
    monkeypatch.setattr(removal, "take_inventory", lambda *_: None)
    resources = {"FileSystem": "fs-0123456789abcdef0", ASSOCIATION: "dra-1", "LifecycleBucket": "b"}
    found = removal.Inventory(None, {}, resources, [], [])
    monkeypatch.setattr(removal, "export_runs", lambda aws, name: done.append(f"export {name}"))
    removal.remove(None, CONFIG, found, keep_stack=False)
    assert done == ["delete_cluster", "export fs-0123456789abcdef0", "_empty_bucket", "delete_stack"]
    for options in ({"keep_stack": True}, {"keep_stack": False, "export": False}):
        done.clear()
        removal.remove(None, CONFIG, found, **options)
        assert not [step for step in done if step.startswith("export")]

    def refuse(*_):
        raise UserError("not all")

    monkeypatch.setattr(removal, "export_runs", refuse)
    done.clear()
    with pytest.raises(UserError):
        removal.remove(None, CONFIG, found, keep_stack=False)
    assert done == ["delete_cluster"]


PLAN = {
    "TrainingPlanArn": "arn:aws:sagemaker:us-west-2:123456789012:training-plan/ours-in-january",
    "TrainingPlanName": "ours-in-january", "Status": "Active", "TargetResources": ["hyperpod-cluster"],
    "StartTime": NOW, "EndTime": NOW.replace(year=2100), "AvailableInstanceCount": 2,
    "ReservedCapacitySummaries": [{
        "ReservedCapacityArn": "arn:aws:sagemaker:us-west-2:123456789012:reserved-capacity/abcdefgh",
        "InstanceType": "ml.p5.48xlarge", "AvailabilityZone": "us-west-2b", "TotalInstanceCount": 2,
        "Status": "Active"}],
}  # fmt: skip
CAPACITY = PLAN["ReservedCapacitySummaries"][0]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, None),
        ({"Status": "Scheduled", "StartTime": NOW.replace(year=2099)}, None),
        ({"Status": "Expired"}, "is Expired; choose another plan"),
        ({"Status": "Failed", "StatusMessage": "payment failed"}, "is Failed (payment failed)"),
        ({"EndTime": NOW}, "ended on 2026-01-02"),
        ({"TargetResources": ["training-job"]}, "was bought for training-job, not for hyperpod-cluster"),
        ({"AvailableInstanceCount": 1}, "has 1 nodes for this cluster, 2 are asked for; set workers.count"),
        ({"ReservedCapacitySummaries": [CAPACITY | {"InstanceType": "ml.p4d.24xlarge"}]},
         "reserves ml.p4d.24xlarge, not ml.p5.48xlarge; set workers.instance_type: ml.p4d.24xlarge"),
        ({"ReservedCapacitySummaries": [CAPACITY | {"AvailabilityZone": "us-west-2a"}]},
         "is in us-west-2a; set availability_zone: us-west-2a"),
        (None, "there is no such training plan in us-west-2"),
    ],
)  # fmt: skip
def test_a_training_plan_is_looked_up_before_anything_is_made(aws, capsys, changes, wrong):
    workers = dataclasses.replace(
        CONFIG.workers, instance_type="ml.p5.48xlarge", training_plan_arn=PLAN["TrainingPlanArn"]
    )
    stub, asked = aws.stubs["sagemaker"], {"TrainingPlanName": "ours-in-january"}
    if changes is None:
        stub.add_client_error("describe_training_plan", "ResourceNotFound")
    else:
        stub.add_response("describe_training_plan", PLAN | changes, asked)
    problems = training_plan_problems(aws, dataclasses.replace(CONFIG, workers=workers), {})
    assert [wrong in line for line in problems] == [True] * bool(wrong), problems
    output = capsys.readouterr().out
    if changes == {}:
        assert (
            output == "training plan ours-in-january: Active, 2026-01-02 03:04 UTC to 2100-01-02 03:04 UTC\n"
        )
    assert ("it has not begun; the workers come on 2099-01-02" in output) == ("StartTime" in (changes or {}))


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("ExpiredTokenException", "aws sso login"),
        ("AccessDeniedException", "ask your administrator"),
        ("ResourceLimitExceeded", "higher quota"),
        ("SomethingNew", "run the same command again"),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(aws, code, remedy):
    aws.stubs["sagemaker"].add_client_error("list_clusters", code, "first\nsecond")
    with pytest.raises(UserError) as refusal, readable_errors():
        cluster.find_cluster(aws, "esm2")
    assert str(refusal.value).startswith(f"AWS refused ListClusters: {code}: first second; ")
    assert remedy in str(refusal.value)
