"""Step 0 from a real HTTP server that misbehaves on purpose: every outcome is clear, and bytes are exact."""

import gzip
import hashlib
import sys

import pytest
from helpers.misbehaving_server import PIECE, serving
from helpers.proteins import digests, fasta, some_proteins
from helpers.steps import error_line, step_0

from esm2_hyperpod.download import remote, sources
from esm2_hyperpod.errors import UserError

CONTENT = gzip.compress(fasta(some_proteins(500)), mtime=0)
THREE = ("--num_partitions", 3)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(remote, "LONGEST_WAIT_SECONDS", 0.01)


def partitions(folder):
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".csv")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    (folder / "p.fasta.gz").write_bytes(CONTENT)
    step_0(folder / "p.fasta.gz", folder / "csv", *THREE)
    return partitions(folder / "csv")


@pytest.fixture
def server():
    with serving(CONTENT) as server:
        yield server


def test_a_connection_that_keeps_breaking_is_resumed_where_it_stopped(server, expected, tmp_path):
    assert len(CONTENT) > 3 * PIECE
    step_0(server.url("breaks"), tmp_path, *THREE)
    assert partitions(tmp_path) == expected
    starts = [int(asked.removeprefix("bytes=")[:-1]) for asked in server.ranges if asked]
    assert starts == list(range(PIECE, len(CONTENT), PIECE))


@pytest.mark.parametrize("kind", ["good", "no_range", "busy", "chunked"])
def test_other_servers_give_the_same_bytes(server, expected, tmp_path, kind):
    step_0(server.url(kind), tmp_path, *THREE)
    assert partitions(tmp_path) == expected


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("changing", "the file changed while it was read"),
        ("missing", "answered 404"),
        ("html", "not a FASTA but a web page"),
    ],
)
def test_what_cannot_be_fetched_is_refused_in_one_line(server, tmp_path, kind, message):
    assert message in error_line(step_0(server.url(kind), tmp_path, check=False))
    assert partitions(tmp_path) == {}
    assert not (tmp_path / "manifest.json").exists()


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    with serving(CONTENT, tls=True) as server:
        refused = step_0(server.url("good", scheme="https"), tmp_path, check=False)
    assert "certificate is not trusted" in error_line(refused)


def test_a_body_that_never_completes_ends_in_an_error(server):
    with pytest.raises(UserError, match=r"at byte .*, 10 times in a row"):
        list(remote.Remote(server.url("truncated")).stream())


def test_nobody_listening_ends_in_an_error():
    with serving(b"") as server:
        url = server.url("good")
    with pytest.raises(UserError, match=r"Connection refused.*5 times in a row"):
        list(remote.Remote(url).stream())


def test_checksums_given_or_published_are_checked(server, expected, tmp_path):
    step_0(server.url("good"), tmp_path / "md5", *THREE, "--checksum", f"md5:{MD5}")
    assert partitions(tmp_path / "md5") == expected
    refused = step_0(server.url("good"), tmp_path / "sha", "--checksum", "sha256:" + "0" * 64, check=False)
    assert f"its sha256 is {hashlib.sha256(CONTENT).hexdigest()}, not 000" in error_line(refused)
    assert partitions(tmp_path / "sha") == {}
    server.files["/good/RELEASE.metalink"] = (
        '<metalink xmlns="http://www.metalinker.org/" version="3.0"><files><file name="proteins.fasta.gz">'
        f'<verification><hash type="md5">{"0" * 32}</hash></verification></file></files></metalink>'
    ).encode()
    refused = step_0(server.url("good"), tmp_path / "published", check=False)
    assert f"its md5 is {MD5}, not 000" in error_line(refused)


def test_a_kept_part_is_used_and_a_changed_one_is_not(server, expected, tmp_path):
    source = sources.open_remote(server.url("good"), tmp_path)
    kept = iter(source.chunks)
    next(kept)
    kept.close()  # the process dies here, with so much on disk:
    (tmp_path / "proteins.fasta.gz.part").write_bytes(CONTENT[:50_000])
    step_0(server.url("good"), tmp_path, *THREE, "--keep_fasta")
    assert "bytes=50000-" in server.ranges
    assert (tmp_path / "proteins.fasta.gz").read_bytes() == CONTENT
    assert partitions(tmp_path) == expected

    other = tmp_path / "other"
    other.mkdir()
    kept = iter(sources.open_remote(server.url("changing"), other).chunks)
    next(kept)
    kept.close()
    again = step_0(server.url("changing"), other, *THREE, "--keep_fasta")
    assert "has changed since" in again.stdout
    assert partitions(other) == expected


def test_s3_reads_by_range_from_a_real_endpoint(server, expected, tmp_path, monkeypatch):
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the credentials that it was made with
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url("", "").rstrip("/"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    step_0("s3://breaks/proteins.fasta.gz", tmp_path / "csv", *THREE)
    assert partitions(tmp_path / "csv") == expected
    refused = step_0("s3://missing/proteins.fasta.gz", tmp_path / "none", check=False)
    assert "404" in error_line(refused)


def test_s3_without_boto3_names_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)  # its import fails
    refused = step_0("s3://bucket/x.fasta.gz", tmp_path / "csv", check=False)
    assert "python -m pip install boto3" in error_line(refused)
