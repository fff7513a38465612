"""An answer's bytes come into memory that is used again, and its connection is free for the next request."""

import io
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3
from botocore.response import StreamingBody

from mask2former_mcp.staging import pieces as module
from mask2former_mcp.staging.pieces import pieces

CONTENT = os.urandom(300_000)


class Store(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        chunked, promised = self.path == "/chunked", len(CONTENT) + (self.path == "/short")
        self.send_response(200)
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(promised))))
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT) if chunked else CONTENT)
        self.close_connection = self.path == "/short"

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[urllib3.HTTPConnectionPool]:
    monkeypatch.setattr(module, "SIZE", 1 << 16)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with urllib3.HTTPConnectionPool("127.0.0.1", server.server_port, maxsize=1) as made:
        yield made
    server.shutdown()
    thread.join()
    server.server_close()


def body(pool: urllib3.HTTPConnectionPool, path: str) -> StreamingBody:
    answer = pool.urlopen("GET", path, preload_content=False, decode_content=False)
    return StreamingBody(answer, None if path == "/chunked" else len(CONTENT))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/", "/chunked"])
def test_all_of_it_arrives_and_the_connection_is_used_again(pool: urllib3.HTTPConnectionPool, path: str) -> None:
    for _ in range(3):
        assert b"".join(bytes(piece) for piece in pieces(body(pool, path), len(CONTENT))) == CONTENT
    if path == "/":  # whether a chunk is the last one, only the next would tell
        assert pool.num_connections == 1


def test_a_connection_that_ends_before_gives_what_arrived(pool: urllib3.HTTPConnectionPool) -> None:
    assert b"".join(bytes(piece) for piece in pieces(body(pool, "/short"), len(CONTENT) + 1)) == CONTENT
    assert b"".join(bytes(piece) for piece in pieces(body(pool, "/"), len(CONTENT))) == CONTENT


def test_a_body_of_another_make_is_read_as_it_offers() -> None:
    found = [bytes(piece) for piece in pieces(io.BytesIO(CONTENT), 100_000)]
    assert b"".join(found) == CONTENT[:100_000]
