"""moto's AWS server on loopback, with what it lacks and a HyperPod cluster needs.

moto has no FSx file system and no workspaces for metrics in CloudFormation, no ListServiceQuotas (here a
table the tests set), no UpdateCluster, UpdateClusterSoftware and StartClusterHealthCheck, no default for
ThreadsPerCore, does not know that continuous provisioning takes no SlurmConfigStrategy, and cannot delete a
stack's NAT gateway, its address, nor its route tables, without which the VPC stays.
"""

import functools
import json
from typing import ClassVar

import boto3
from botocore.loaders import JSONFileLoader
from moto.amp.models import Workspace, amp_backends
from moto.core.common_models import CloudFormationModel
from moto.core.responses import ActionResult
from moto.ec2.models.elastic_ip_addresses import ElasticAddress
from moto.ec2.models.nat_gateways import NatGateway
from moto.ec2.models.route_tables import RouteTable
from moto.fsx.models import FileSystem, FSxBackend, fsx_backends
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.sagemaker.exceptions import ValidationError
from moto.sagemaker.models import ClusterNode, SageMakerModelBackend
from moto.sagemaker.responses import SageMakerResponse
from moto.servicequotas.responses import ServiceQuotasResponse

REGION = "us-west-2"
QUOTAS: dict[str, float] = {}
# What Service Quotas lists only among AWS's defaults, as in an account that has never asked for more.
DEFAULT_QUOTAS = {
    "Maximum number instances allowed per SageMaker HyperPod cluster": 20.0,
    "Total number of instances allowed across SageMaker HyperPod clusters": 20.0,
    "Maximum size of EBS volume in GB for a SageMaker HyperPod cluster instance": 1024.0,
    "VPCs per Region": 5.0,
    "Internet gateways per Region": 5.0,
    "NAT gateways per Availability Zone": 5.0,
    "EC2-VPC Elastic IPs": 5.0,
}
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    # Whatever would leave this machine goes to a closed port instead.
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
}


class StackFileSystem(FileSystem, CloudFormationModel):
    """moto's FSx file system as the resource AWS::FSx::FileSystem of a stack."""

    __module__ = "moto.fsx.models"  # moto files its models by the service in their module's name

    @staticmethod
    def cloudformation_name_type():
        return ""

    @staticmethod
    def cloudformation_type():
        return "AWS::FSx::FileSystem"

    @classmethod
    def has_cfn_attr(cls, attr):
        return attr in ("DNSName", "LustreMountName")

    def get_cfn_attribute(self, name):
        return {"DNSName": self.dns_name, "LustreMountName": "abcdefgh"}[name]

    @property
    def physical_resource_id(self):
        return self.file_system_id

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name, cloudformation_json, account_id, region, **kwargs
    ):
        given = cloudformation_json["Properties"]
        backend = fsx_backends[account_id][region]
        made = cls(
            account_id=account_id,
            region_name=region,
            file_system_type=given["FileSystemType"],
            storage_capacity=given["StorageCapacity"],
            storage_type=given["StorageType"],
            subnet_ids=given["SubnetIds"],
            security_group_ids=given["SecurityGroupIds"],
            tags=given["Tags"],
            kms_key_id=None,
            windows_configuration=None,
            lustre_configuration=given["LustreConfiguration"],
            ontap_configuration=None,
            open_zfs_configuration=None,
            backend=backend,
        )
        backend.file_systems[made.file_system_id] = made
        return made

    def delete(self, account_id, region):
        del fsx_backends[account_id][region].file_systems[self.file_system_id]


class StackPrometheus(Workspace, CloudFormationModel):
    """moto's Prometheus workspace as the resource AWS::APS::Workspace of a stack."""

    __module__ = "moto.amp.models"

    @staticmethod
    def cloudformation_name_type():
        return ""

    @staticmethod
    def cloudformation_type():
        return "AWS::APS::Workspace"

    @classmethod
    def has_cfn_attr(cls, attr):
        return attr in ("Arn", "PrometheusEndpoint")

    def get_cfn_attribute(self, name):
        return {"Arn": self.arn, "PrometheusEndpoint": self.endpoint}[name]

    @property
    def physical_resource_id(self):
        return self.arn

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name, cloudformation_json, account_id, region, **kwargs
    ):
        backend = amp_backends[account_id][region]
        alias = cloudformation_json["Properties"]["Alias"]
        made = cls(account_id, region, alias, backend.list_tags_for_resource)
        backend.workspaces[made.workspace_id] = made
        return made

    def delete(self, account_id, region):
        del amp_backends[account_id][region].workspaces[self.workspace_id]


class StackGrafana(CloudFormationModel):
    """AWS::Grafana::Workspace, a service that moto does not have."""

    __module__ = "moto.amp.models"
    there: ClassVar[list] = []
    physical_resource_id = "g-0123456789"

    @staticmethod
    def cloudformation_name_type():
        return ""

    @staticmethod
    def cloudformation_type():
        return "AWS::Grafana::Workspace"

    @classmethod
    def has_cfn_attr(cls, attr):
        return attr == "Endpoint"

    def get_cfn_attribute(self, name):
        return "g-0123456789.grafana-workspace.us-west-2.amazonaws.com"

    @classmethod
    def create_from_cloudformation_json(cls, resource_name, cloudformation_json, *arguments, **kwargs):
        cls.there.append(cloudformation_json["Properties"])
        return cls()

    def delete(self, account_id, region):
        self.there.clear()


def _quotas_in(table):
    def answer(_):
        quotas = [{"QuotaName": name, "QuotaCode": "L-1", "Value": value} for name, value in table.items()]
        return json.dumps({"Quotas": quotas})

    return answer


def _file_system_backups(self, backup_ids, filters=None, max_results=None, next_token=None):
    """moto answers with the backups of all file systems, whatever the filter."""
    (wanted,) = (f["Values"] for f in filters if f["Name"] == "file-system-id")
    return [backup for backup in self.backups.values() if backup.file_system_id in wanted], None


def _create_cluster(self, cluster_name, instance_groups, vpc_config, tags):
    groups = [{"ThreadsPerCore": 2} | group for group in instance_groups]
    return _moto_create_cluster(self, cluster_name, groups, vpc_config, tags)


def _create_cluster_as_aws(self):
    """AWS's page "Continuous provisioning for enhanced cluster operations with Slurm": an API error."""
    slurm = (self._get_param("Orchestrator") or {}).get("Slurm") or {}
    if self._get_param("NodeProvisioningMode") == "Continuous" and "SlurmConfigStrategy" in slurm:
        raise ValidationError(message="SlurmConfigStrategy is not supported with continuous provisioning.")
    return _moto_create_cluster_response(self)


def _update_cluster(self):
    """Sets the groups' counts, and removes the last nodes or adds new ones."""
    name = self._get_param("ClusterName")
    cluster = self.sagemaker_backend.clusters[name]
    for asked in self._get_param("InstanceGroups"):
        group = next(
            g for g in cluster.instance_groups if g["InstanceGroupName"] == asked["InstanceGroupName"]
        )
        group["CurrentCount"] = group["TargetCount"] = asked["InstanceCount"]
        prefix = group["InstanceGroupName"]
        cluster.nodes = {i: n for i, n in cluster.nodes.items() if n.instance_group_name != prefix} | {
            f"{prefix}-{n}": ClusterNode(
                region_name=REGION, account_id=cluster.account_id, cluster_name=name, node_id=f"{prefix}-{n}",
                instance_group_name=prefix, instance_type=group["InstanceType"],
                life_cycle_config=group["LifeCycleConfig"], execution_role=group["ExecutionRole"],
            )
            for n in range(asked["InstanceCount"])
        }  # fmt: skip
    return ActionResult({"ClusterArn": cluster.arn})


def _start_cluster_health_check(self):
    return ActionResult({"ClusterArn": self.sagemaker_backend.clusters[self._get_param("ClusterName")].arn})


def _update_cluster_software(self):
    cluster = self.sagemaker_backend.clusters[self._get_param("ClusterName")]
    for group in cluster.instance_groups:
        group["SoftwareUpdateStatus"] = "Succeeded"
    return ActionResult({"ClusterArn": cluster.arn})


def _delete_nat_gateway(self, account_id, region):
    self.ec2_backend.delete_nat_gateway(self.id)


def _delete_address(self, account_id, region):
    self.ec2_backend.release_address(allocation_id=self.allocation_id)


def _delete_route_table(self, account_id, region):
    self._associations.clear()
    self.ec2_backend.delete_route_table(self.id)


_moto_create_cluster = SageMakerModelBackend.create_cluster
_moto_create_cluster_response = SageMakerResponse.create_cluster


def start_server() -> tuple[ThreadedMotoServer, str]:
    """A running server and its address."""
    # Each session reads its service models anew, which takes longer than all the rest of a test.
    JSONFileLoader.load_file = functools.cache(JSONFileLoader.load_file)
    ServiceQuotasResponse.list_service_quotas = _quotas_in(QUOTAS)
    ServiceQuotasResponse.list_aws_default_service_quotas = _quotas_in(DEFAULT_QUOTAS)
    FSxBackend.describe_backups = _file_system_backups
    SageMakerModelBackend.create_cluster = _create_cluster
    SageMakerResponse.create_cluster = _create_cluster_as_aws
    SageMakerResponse.update_cluster = _update_cluster
    SageMakerResponse.start_cluster_health_check = _start_cluster_health_check
    SageMakerResponse.update_cluster_software = _update_cluster_software
    NatGateway.delete = _delete_nat_gateway
    ElasticAddress.delete = _delete_address
    RouteTable.delete = _delete_route_table
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return server, f"http://{host}:{port}"


@functools.cache
def client(service: str, address: str):
    """A client of the server, for looking at what the command did."""
    session = boto3.Session("testing", "testing", region_name=REGION)
    return session.client(service, endpoint_url=address)
