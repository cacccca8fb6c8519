"""Bytes over a network that breaks: fetched by position, resumed where they stopped.

A `Remote` is one file behind a URL. Its bytes stream through without being stored; after a break it asks
for the rest with an HTTP Range (or S3's), and makes sure by ETag, date and size that it is the same file.
"""

import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlparse

import requests
import urllib3
from tqdm import tqdm

from esm2_hyperpod.errors import UserError

CHUNK_BYTES = 1 << 20
CONNECT_SECONDS, READ_SECONDS = 15, 60
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 60
RETRIES_BEFORE_FIRST_BYTE, RETRIES_WITHOUT_PROGRESS = 4, 9
INSTALL_BOTO3 = "python -m pip install boto3"
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


class SourceChanged(UserError):
    """The file behind the address is no longer the one whose first part was read."""


class Broken(Exception):
    """The transfer broke in a way that may pass; the message says how."""


class Remote:
    """A file at a URL, and what is known of it once it has answered: `size` in bytes, `validator`."""

    def __init__(self, url: str):
        self.url = url
        self.size: int | None = None
        self.validator: str | None = None
        scheme = urlparse(url).scheme
        self._open: Callable[[int], Iterator[bytes]] = self._open_s3 if scheme == "s3" else self._open_http

    def stream(self, position: int = 0) -> Iterator[bytes]:
        """The file's bytes from `position` to its end, over as many connections as it takes.

        Waits twice as long after each failure in a row. Raises `UserError` when the address is wrong,
        when the server cannot be trusted, or after too many failures with no progress; `SourceChanged`
        when the file is not the one begun.
        """
        failures, received = 0, False
        while True:
            try:
                for chunk in self._open(position):
                    position += len(chunk)
                    failures, received = 0, True
                    yield chunk
                if self.size is None or position == self.size:
                    return
                problem = "the connection was closed"
            except Broken as error:
                problem = str(error)
            failures += 1
            if failures > (RETRIES_WITHOUT_PROGRESS if received else RETRIES_BEFORE_FIRST_BYTE):
                raise UserError(
                    f"{self.url}: {problem} at byte {position:,}, {failures} times in a row; "
                    "check the address and the network, then run the same command again"
                )
            wait = min(FIRST_WAIT_SECONDS * 2 ** (failures - 1), LONGEST_WAIT_SECONDS)
            tqdm.write(f"{problem} at byte {position:,}; trying again in {wait:g} s")
            time.sleep(wait)

    def _same_file(self, size: int | None, validator: str | None) -> None:
        """Remember the file's size and validator, or check that they are still the same."""
        for name, known, now in (("size", self.size, size), ("version", self.validator, validator)):
            if known is not None and now is not None and known != now:
                raise SourceChanged(
                    f"{self.url}: the file changed while it was read ({name} was {known}, is now {now}); "
                    "run the same command again to start over with the new file"
                )
        self.size = size if self.size is None else self.size
        self.validator = validator if self.validator is None else self.validator

    def _open_http(self, position: int) -> Iterator[bytes]:
        headers = {"Accept-Encoding": "identity"}
        if position:
            headers["Range"] = f"bytes={position}-"
            if self.validator:
                headers["If-Range"] = self.validator
        try:
            with requests.get(
                self.url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)
            ) as response:
                yield from self._body(response, position)
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"{self.url}: the server's certificate is not trusted ({_cause(error)}); check the address, "
                "or the proxy's certificate in REQUESTS_CA_BUNDLE"
            ) from None
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise Broken(_cause(error)) from None
        except requests.exceptions.RequestException as error:
            raise UserError(f"{self.url}: {_cause(error)}; check the address") from None

    def _body(self, response: requests.Response, position: int) -> Iterator[bytes]:
        status = response.status_code
        if status in _PASSING_STATUS:
            raise Broken(f"the server answered {status} {response.reason}")
        if status == 416:
            raise SourceChanged(f"{self.url}: the file is shorter than before; run the same command again")
        if status not in (200, 206):
            raise UserError(f"{self.url}: the server answered {status} {response.reason}; check the address")
        etag = response.headers.get("ETag", "")
        strong = etag if etag and not etag.startswith("W/") else None
        skip = 0
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != position:
                raise UserError(f"{self.url}: the server sent another part than was asked for")
            size = int(match[2])
        else:
            length = response.headers.get("Content-Length")
            size = int(length) if length and length.isdigit() else None
            skip = position  # a server without Range, or another file: `_same_file` tells
        self._same_file(size, strong or response.headers.get("Last-Modified"))
        for chunk in _received(response):
            kept = chunk[skip:] if skip else chunk
            skip -= len(chunk) - len(kept)
            if kept:
                yield kept

    def _open_s3(self, position: int) -> Iterator[bytes]:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise UserError(
                f"{self.url}: reading from S3 needs boto3; install it with: {INSTALL_BOTO3}"
            ) from None
        address = urlparse(self.url)
        asked = {"Bucket": address.netloc, "Key": address.path.lstrip("/")}
        if position:
            asked["Range"] = f"bytes={position}-"
        if self.validator:
            asked["IfMatch"] = self.validator
        try:
            answer = boto3.client("s3").get_object(**asked)
            self._same_file(position + answer["ContentLength"], answer["ETag"])
            yield from answer["Body"].iter_chunks(CHUNK_BYTES)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (412, 416):
                raise SourceChanged(f"{self.url}: the file changed; run the same command again") from None
            if status in _PASSING_STATUS:
                raise Broken(str(error)) from None
            raise UserError(f"{self.url}: {error}; check the address and your permissions") from None
        except BotoCoreError as error:
            if "credentials" in str(error).lower():
                raise UserError(f"{self.url}: {error}; configure them with: aws configure") from None
            raise Broken(str(error)) from None


def _received(response: requests.Response) -> Iterator[bytes]:
    """The body as it arrives. `iter_content` would lose what came of a piece when the connection breaks."""
    try:
        if response.raw.chunked:
            yield from response.raw.read_chunked(CHUNK_BYTES, decode_content=False)
        else:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                yield chunk
    except urllib3.exceptions.HTTPError as error:
        raise Broken(_cause(error)) from None


def _cause(error: BaseException) -> str:
    """The innermost reason of a chain of network errors, in one line."""
    seen = {id(error)}
    while True:
        inner = getattr(error, "reason", None) or next(
            (a for a in error.args if isinstance(a, Exception)), None
        )
        if not isinstance(inner, Exception) or id(inner) in seen:
            return re.sub(r"<[^>]*>: ?", "", str(error)).strip() or type(error).__name__
        seen.add(id(inner))
        error = inner
