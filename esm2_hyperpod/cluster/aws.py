"""Connections to AWS, and what AWS refuses turned into one line a user can act on."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import boto3
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from esm2_hyperpod.errors import UserError

POLL_SECONDS = 15
_LOG_IN = "log in with `aws configure` or `aws sso login`, and check with `aws sts get-caller-identity`"
_REMEDIES = {
    "AccessDenied": "ask your administrator for that permission",
    "AccessDeniedException": "ask your administrator for that permission",
    "UnauthorizedOperation": "ask your administrator for that permission",
    "ExpiredToken": _LOG_IN,
    "ExpiredTokenException": _LOG_IN,
    "InvalidClientTokenId": _LOG_IN,
    "UnrecognizedClientException": _LOG_IN,
    "SignatureDoesNotMatch": _LOG_IN,
    "ResourceLimitExceeded": "ask for a higher quota: Service Quotas, Amazon SageMaker, 'for cluster usage'",
    "ConflictException": "another change is in progress: wait until `hyperpod.py status` shows its end",
}


@dataclass
class Aws:
    """Clients of one region; `endpoint_url` replaces AWS's address for all of them."""

    region: str
    endpoint_url: str | None = None
    _clients: dict[tuple[str, str], BaseClient] = field(init=False, default_factory=dict)

    def client(self, service: str, region: str | None = None) -> BaseClient:
        """The boto3 client of a service, made once; in another region where the service is only there."""
        key = service, region or self.region
        if key not in self._clients:
            retries = Config(retries={"mode": "standard", "max_attempts": 5})
            self._clients[key] = boto3.client(
                service, region_name=key[1], endpoint_url=self.endpoint_url, config=retries
            )
        return self._clients[key]


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Turn boto3's errors into a `UserError` with the call, AWS's message and a remedy."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        raise UserError(f"no AWS credentials on this machine; {_LOG_IN}") from None
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        remedy = _REMEDIES.get(code, "correct it, then run the same command again")
        raise UserError(
            f"AWS refused {error.operation_name}: {code}: {_one_line(message)}; {remedy}"
        ) from None
    except BotoCoreError as error:
        remedy = "check the network, then run the same command again"
        raise UserError(f"AWS cannot be reached: {_one_line(str(error))}; {remedy}") from None


def wait_until(observe: Callable[[], tuple[str, bool]], limit_minutes: int) -> None:
    """Call `observe` until its second result is true, printing its first, with the time, when it changes.

    `observe` raises `UserError` when waiting has become pointless. So does this function after
    `limit_minutes`, with the last state and the command that resumes the wait.
    """
    start, last = time.monotonic(), None
    while True:
        line, done = observe()
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        if line != last:
            print(f"  {minutes:3d}:{seconds:02d}  {line}", flush=True)
            last = line
        if done:
            return
        if minutes >= limit_minutes:
            raise UserError(
                f"after {minutes} minutes still: {line}; AWS continues by itself (and bills): look with "
                "`hyperpod.py status`, or run the same command again to wait longer"
            )
        time.sleep(POLL_SECONDS)


def _one_line(text: str) -> str:
    return " ".join(text.split())
