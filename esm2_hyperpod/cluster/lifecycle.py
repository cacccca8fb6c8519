"""Put the set-up script where the nodes fetch it, with nothing beside it that would break Slurm's set-up."""

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig
from esm2_hyperpod.cluster.request import lifecycle_location
from esm2_hyperpod.errors import UserError

LEGACY_TOPOLOGY = "provisioning_parameters.json"


def upload_script(aws: Aws, config: ClusterConfig, bucket: str) -> None:
    """Upload `options.on_init_complete`, or check that the script already in S3 is there.

    Raises `UserError` where it is missing, or where the legacy topology file lies beside it: HyperPod
    refuses a cluster that has both that file and SlurmConfig.
    """
    script = config.options.on_init_complete
    if script is None:
        return
    folder, name = lifecycle_location(script, bucket)
    bucket_name, _, prefix = folder.removeprefix("s3://").partition("/")
    s3 = aws.client("s3")
    if not script.startswith("s3://"):
        s3.put_object(Bucket=bucket_name, Key=f"{prefix}/{name}", Body=(config.folder / script).read_bytes())
        print(f"uploaded {script} to {folder}/{name}")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket_name, Prefix=f"{prefix}/")
    keys = {item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])}
    if name not in keys:
        raise UserError(f"{script}: there is no such object; upload it, or correct options.on_init_complete")
    if LEGACY_TOPOLOGY in keys:
        raise UserError(
            f"{folder}/{LEGACY_TOPOLOGY}: the legacy topology file cannot be there with this cluster; "
            f"remove it with: aws s3 rm {folder}/{LEGACY_TOPOLOGY}"
        )
