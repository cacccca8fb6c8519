"""Data that outlives the cluster: /fsx/data from a bucket, /fsx/runs to it.

FSx keeps both in step by itself (data repository associations, in the stack). Before the file system is
deleted, what is not in the bucket yet is exported, and only when all of it has arrived does deletion go on.
"""

from typing import Any

from botocore.exceptions import ClientError

from esm2_hyperpod.cluster.aws import Aws, wait_until
from esm2_hyperpod.cluster.config import ClusterConfig
from esm2_hyperpod.errors import UserError, problem

EXPORT_MINUTES = 240
ASSOCIATION = "RunsToBucket"  # its name in the template
_UNDER_WAY = ("PENDING", "EXECUTING")


def bucket_problems(aws: Aws, config: ClusterConfig) -> list[str]:
    """Why `fsx.data_bucket` cannot be used: FSx needs one that exists, in the cluster's region."""
    bucket = config.fsx.data_bucket
    if bucket is None:
        return []
    make = f"make it with: aws s3 mb s3://{bucket} --region {config.region}"
    try:
        region = aws.client("s3").head_bucket(Bucket=bucket).get("BucketRegion", config.region)
    except ClientError as error:
        # S3 answers HEAD without a body, so the code is the number; 301 is another region.
        code = error.response["Error"]["Code"]
        wrong = {"404": "there is no such bucket", "301": f"is not in {config.region}"}
        if code in wrong:
            return [problem("fsx.data_bucket", bucket, wrong[code], f"name another, or {make}")]
        if code == "403":
            return [problem("fsx.data_bucket", bucket, "your login may not read it", "name one of yours")]
        raise
    if region == config.region:
        return []
    return [
        problem("fsx.data_bucket", bucket, f"is in {region}, not in {config.region}", f"use another; {make}")
    ]


def export_runs(aws: Aws, file_system: str) -> None:
    """Export what /fsx/runs has and the bucket has not, and wait for it.

    Raises `UserError` if files did not arrive; then nothing has been deleted.
    """
    fsx = aws.client("fsx")
    filters = [
        {"Name": "file-system-id", "Values": [file_system]},
        {"Name": "task-lifecycle", "Values": list(_UNDER_WAY)},
    ]
    for task in fsx.describe_data_repository_tasks(Filters=filters)["DataRepositoryTasks"]:
        _wait(fsx, task["TaskId"])  # it may have begun before the last file was written
    print("exporting /fsx/runs to the bucket")
    task = fsx.create_data_repository_task(
        FileSystemId=file_system, Type="EXPORT_TO_REPOSITORY", Paths=["runs"], Report={"Enabled": False}
    )["DataRepositoryTask"]
    ended = _wait(fsx, task["TaskId"])
    missing = ended.get("Status", {}).get("FailedCount", 0)
    if ended["Lifecycle"] != "SUCCEEDED" or missing:
        reason = ended.get("FailureDetails", {}).get("Message", f"{missing} files failed")
        raise UserError(
            f"not all of /fsx/runs is in the bucket ({ended['Lifecycle']}: {reason}); the file system was "
            "not deleted: copy what matters, then run the same command with --without_export"
        )


def _wait(fsx: Any, task_id: str) -> dict[str, Any]:
    """The task's description once it has ended."""
    task: dict[str, Any] = {}

    def observe() -> tuple[str, bool]:
        task.update(fsx.describe_data_repository_tasks(TaskIds=[task_id])["DataRepositoryTasks"][0])
        done, total = (task.get("Status", {}).get(name, 0) for name in ("SucceededCount", "TotalCount"))
        return f"export: {task['Lifecycle']}, {done} of {total} files", task["Lifecycle"] not in _UNDER_WAY

    wait_until(observe, EXPORT_MINUTES)
    return task
