"""A real HTTP server on localhost that serves one body and misbehaves as its paths say.

/good/NAME        Range, ETag, Content-Length
/breaks/NAME      as good, but closes the connection after every 20,000 bytes
/no_range/NAME    breaks once after 20,000 bytes, and knows no Range
/changing/NAME    breaks once, and is another file the next time
/busy/NAME        answers 503 twice, then as good
/truncated/NAME   promises the whole body, always sends half, knows no Range
/chunked/NAME     sends the body in chunks and does not say how long it is
/html/NAME        a proxy's login page, with status 200
anything else     404
"""

import contextlib
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme

PIECE = 20_000
HTML = b"<!DOCTYPE html><html><body>Please log in to the network</body></html>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        server: Server = self.server
        kind = self.path.split("/")[1]
        server.requests[kind] += 1
        server.ranges.append(self.headers.get("Range"))
        number = server.requests[kind]
        extra = server.files.get(self.path)
        if extra is not None:
            self.answer(200, extra)
        elif kind == "html":
            self.answer(200, HTML)
        elif kind == "busy" and number <= 2:
            self.answer(503, b"")
        elif kind in ("good", "busy"):
            self.body(ranges=True)
        elif kind == "breaks":
            self.body(ranges=True, at_most=PIECE)
        elif kind == "no_range":
            self.body(ranges=False, at_most=PIECE if number == 1 else None)
        elif kind == "changing":
            self.body(ranges=True, at_most=PIECE if number == 1 else None, version=number)
        elif kind == "chunked":
            self.chunks()
        elif kind == "truncated":
            self.body(ranges=False, at_most=len(server.content) // 2)
        else:
            self.answer(404, b"nothing here")

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(self.server.content), PIECE):
            piece = self.server.content[at : at + PIECE]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def body(self, ranges: bool, at_most: int | None = None, version: int = 1) -> None:
        content, start = self.server.content, 0
        asked, etag = self.headers.get("Range"), f'"version-{version}"'
        same = self.headers.get("If-Range", etag) == etag
        if ranges and asked and same:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(content[start:][:at_most])
        if at_most is not None:
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[str | None] = []

    def handle_error(self, *_) -> None:
        """Say nothing: clients leave early."""

    def url(self, kind: str, name: str = "proteins.fasta.gz", scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.server_port}/{kind}/{name}"


@contextlib.contextmanager
def serving(content: bytes, tls: bool = False) -> Iterator[Server]:
    """Serve `content` while the block runs."""
    server = Server(content)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)  # of an authority that nobody knows
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
