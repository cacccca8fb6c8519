"""Where FASTA bytes come from: a URL, an S3 object, a file, or the synthetic generator."""

import hashlib
import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlparse

import requests
from isal import igzip_lib

from esm2_hyperpod.artifacts import write_json_atomically
from esm2_hyperpod.download.remote import CHUNK_BYTES, Remote, SourceChanged
from esm2_hyperpod.errors import UserError

UNIREF50 = "https://ftp.uniprot.org/pub/databases/uniprot/current_release/uniref/uniref50/uniref50.fasta.gz"
SYNTHETIC = "synthetic"
_GZIP_MAGIC = b"\x1f\x8b"
_INFLATED_BYTES = 4 << 20


@dataclass
class Source:
    """Bytes of a FASTA, compressed or not. `size` is in bytes, `None` where the source does not say."""

    name: str
    size: int | None
    chunks: Iterator[bytes]


def is_remote(source: str) -> bool:
    """Whether `source` is an address on a network."""
    return urlparse(source).scheme in ("http", "https", "s3")


def open_file(source: str) -> Source:
    """A FASTA on this machine. Raises `UserError` if there is none."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise UserError(
            f"{source}: a folder; --source takes one FASTA file (cat *.fasta > all.fasta joins several)"
        )
    if urlparse(source).scheme not in ("", "file") or not path.is_file():
        raise UserError(
            f"{source}: no such file; --source takes https://, http://, s3://, a path to a FASTA "
            f"(.fasta or .fasta.gz), or '{SYNTHETIC}'"
        )
    return Source(str(path), path.stat().st_size, _read(path))


def open_remote(url: str, keep_in: Path | None) -> Source:
    """A FASTA behind an address; with `keep_in`, its bytes are also kept there under its own name.

    What was kept of an unfinished download is used: the transfer resumes where it stopped.
    """
    remote = Remote(url)
    if keep_in is None:
        chunks = remote.stream()
        first = next(chunks, b"")  # now the remote knows its size
        return Source(url, remote.size, itertools.chain([first], chunks))
    return _open_kept(remote, keep_in / Path(urlparse(url).path).name)


def published_checksum(url: str) -> str | None:
    """`md5:...` of `url` from the RELEASE.metalink that UniProt keeps beside its files, if there is one."""
    if urlparse(url).scheme not in ("http", "https"):
        return None
    try:
        answer = requests.get(urljoin(url, "RELEASE.metalink"), timeout=15)
        files = ElementTree.fromstring(answer.content).iterfind(".//{*}file") if answer.ok else ()
    except (requests.exceptions.RequestException, ElementTree.ParseError):
        return None
    for file in files:
        digest = file.findtext(".//{*}hash[@type='md5']")
        if digest and file.get("name") == Path(urlparse(url).path).name:
            return f"md5:{digest.strip().lower()}"
    return None


def checked(chunks: Iterator[bytes], checksum: str, name: str) -> Iterator[bytes]:
    """The same bytes; raises `UserError` after the last if their digest is not `checksum` (`kind:hex`)."""
    kind, expected = checksum.split(":", 1)
    digest = hashlib.new(kind)
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != expected:
        raise UserError(
            f"{name}: its {kind} is {digest.hexdigest()}, not {expected}: it is corrupt, or another "
            "release; run the same command again, or correct --checksum"
        )


def decompressed(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Plain bytes of a stream that may be gzip (one member or several); others pass as they are.

    Raises `UserError`, with the offset in the compressed file, if the gzip is corrupt or incomplete.
    """
    first = next(chunks, b"")
    chunks = itertools.chain([first], chunks)
    if not first.startswith(_GZIP_MAGIC):
        yield from chunks
        return
    # Not `isal.igzip_threaded` (1.9.1): where bytes come slowly, it can end before the last block, silently.
    inflater, offset = _inflater(), 0
    for chunk in chunks:
        offset += len(chunk)
        while chunk or not (inflater.needs_input or inflater.eof):
            if inflater.eof:
                chunk = chunk.lstrip(b"\0")  # gzip pads files with zeros
                if not chunk:
                    break
                inflater = _inflater()
            try:
                yield inflater.decompress(chunk, _INFLATED_BYTES)
            except igzip_lib.error as error:
                raise UserError(
                    f"{name}: corrupt gzip near compressed byte {offset:,} ({error}); fetch the file again"
                ) from None
            chunk = inflater.unused_data if inflater.eof else b""
    if not inflater.eof:
        raise UserError(
            f"{name}: incomplete gzip, it ends after {offset:,} compressed bytes; fetch the file again"
        )


def _inflater() -> igzip_lib.IgzipDecompressor:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _open_kept(remote: Remote, path: Path) -> Source:
    part, notes = path.with_name(f"{path.name}.part"), path.with_name(f".{path.name}.part.json")
    if path.is_file():
        return Source(str(path), path.stat().st_size, _read(path))
    have = 0
    if part.is_file() and notes.is_file():
        noted = json.loads(notes.read_text())
        if noted["url"] == remote.url and noted["validator"]:
            remote.size, remote.validator, have = noted["size"], noted["validator"], part.stat().st_size
    if have and have == remote.size:
        rest, first = iter(()), b""
    else:
        rest = remote.stream(have)
        try:
            first = next(rest, b"")
        except SourceChanged:
            print(f"{remote.url}: has changed since {have:,} bytes of it were kept; starting over")
            remote.size, remote.validator, have = None, None, 0
            rest = remote.stream()
            first = next(rest, b"")
    write_json_atomically(notes, {"url": remote.url, "size": remote.size, "validator": remote.validator})

    def chunks() -> Iterator[bytes]:  # not `whole_file`: what came before a kill is kept, and used
        if have:
            yield from _read(part)
        with open(part, "ab" if have else "wb") as file:
            for chunk in itertools.chain([first], rest):
                file.write(chunk)
                yield chunk
        part.replace(path)
        notes.unlink()

    return Source(remote.url, remote.size, chunks())
