"""Published files over https: a TLS server on the loopback, reached under public names by a resolver of the test."""

import hashlib
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import InvalidRequest, NotAvailable
from mask2former_mcp.staging import prepare
from mask2former_mcp.staging.download import Network, check, fetch, place

PUBLIC = "93.184.216.34"
CONTENT = b"weights" * 50_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LINK = "https://files.example/v1/swin.pth"
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the server's certificate")


@dataclass
class Web:
    """What each https address answers, which were asked, and which network addresses were contacted."""

    port: int = 0
    trust: Path = Path()
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)  # "host/path" -> answer
    names: dict[str, list[str]] = field(default_factory=dict)  # one answer after the other, the last one for ever
    asked: list[str] = field(default_factory=list)
    contacted: list[str] = field(default_factory=list)
    proxies: dict[str, str] = field(default_factory=dict)

    def network(self) -> Network:
        return Network(self.resolve, self.connect, self.context, lambda: self.proxies)

    def resolve(self, host: str) -> list[str]:
        known = self.names.get(host)
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, f"{host}: name or service not known")
        return [known.pop(0) if len(known) > 1 else known[0]]

    def connect(self, address: str, port: int) -> socket.socket:
        self.contacted.append(f"{address}:{port}")
        return socket.create_connection(("127.0.0.1", self.port), 5)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.trust))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """key.pem and cert.pem of a server that is files.example and cdn.example."""
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:files.example,DNS:cdn.example"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=files.example", "-addext", names, "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that broke off is what some tests are about."""


@pytest.fixture
def web(certificate: Path) -> Iterator[Web]:
    web = Web(trust=certificate / "cert.pem", names={"files.example": [PUBLIC], "cdn.example": ["2606:2800:220::1"]})
    web.pages["files.example/v1/swin.pth"] = (200, {}, CONTENT)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            page = f"{self.headers['Host']}{self.path}"
            web.asked.append(page)
            status, headers, body = web.pages.get(page, (404, {}, b"nothing here"))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    web.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield web
    server.shutdown()
    server.server_close()


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


def test_a_file_is_fetched_once_and_kept_with_its_checksum(web: Web, tmp_path: Path) -> None:
    target, told = tmp_path / "cache" / "swin.pth", list[tuple[int, int]]()
    assert fetch(LINK, target, network=web.network(), progress=lambda done, all_: told.append((done, all_))) == DIGEST
    assert target.read_bytes() == CONTENT
    assert (tmp_path / "cache" / "swin.pth.sha256").read_text().strip() == DIGEST
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(LINK, target, network=web.network()) == DIGEST
    assert len(web.asked) == 1
    assert web.contacted == [f"{PUBLIC}:443"]


def test_two_who_ask_at_once_fetch_once(web: Web, tmp_path: Path) -> None:
    target, found = tmp_path / "swin.pth", list[str]()
    both = [threading.Thread(target=lambda: found.append(fetch(LINK, target, network=web.network()))) for _ in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join(10)
    assert found == [DIGEST, DIGEST]
    assert len(web.asked) == 1


def test_a_file_that_was_put_there_by_hand_is_taken(web: Web, tmp_path: Path) -> None:
    (tmp_path / "swin.pth").write_bytes(CONTENT)
    assert fetch(LINK, tmp_path / "swin.pth", network=web.network()) == DIGEST
    assert web.contacted == []


def test_a_file_that_changed_since_it_was_fetched_is_not_taken(web: Web, tmp_path: Path) -> None:
    target = tmp_path / "swin.pth"
    fetch(LINK, target, network=web.network())
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(InvalidRequest, match=f"not {DIGEST}"):
        fetch(LINK, target, network=web.network())


def test_an_answer_in_chunks_is_taken(web: Web, tmp_path: Path) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (CONTENT[:99], CONTENT[99:])) + b"0\r\n\r\n"
    web.pages["files.example/v1/swin.pth"] = (200, {"Content-Length": "", "Transfer-Encoding": "chunked"}, chunks)
    assert fetch(LINK, tmp_path / "swin.pth", network=web.network()) == DIGEST


def test_a_redirect_is_followed_and_checked_like_the_first_address(web: Web, tmp_path: Path) -> None:
    web.pages["files.example/v1/swin.pth"] = (302, {"Location": "https://cdn.example/blob?token=1&x=2"}, b"")
    web.pages["cdn.example/blob?token=1&x=2"] = (307, {"Location": "/final"}, b"")
    web.pages["cdn.example/final"] = (200, {}, CONTENT)
    assert fetch(LINK, tmp_path / "swin.pth", network=web.network()) == DIGEST
    assert web.contacted == [f"{PUBLIC}:443", "2606:2800:220::1:443", "2606:2800:220::1:443"]


HOSTILE_ADDRESSES = [
    "127.0.0.1", "10.0.0.8", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "::1", "fe80::1%eth0", "fc00::7", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "240.0.0.1", "64:ff9b:1::a9fe:a9fe", "fec0::1", "::7f00:1", "::ffff:0:a9fe:a9fe", "192.0.0.8",
]  # fmt: skip


@pytest.mark.parametrize("address", HOSTILE_ADDRESSES)
def test_a_name_that_means_a_private_address_is_refused_before_a_connection(
    web: Web, tmp_path: Path, address: str
) -> None:
    web.names["files.example"] = [address]
    with pytest.raises(InvalidRequest, match="not a public address"):
        fetch(LINK, tmp_path / "swin.pth", network=web.network())
    assert web.contacted == []
    assert left(tmp_path) == set()


HOSTILE_LINKS = [
    "http://files.example/swin.pth", "ftp://files.example/swin.pth", "file:///etc/passwd", "/etc/passwd", "",
    "https://", "https:///swin.pth", "https://user:word@files.example/swin.pth", "https://@files.example/x",
    "https://files.example:8443/swin.pth", "https://files.example:notaport/x", "https://127.0.0.1/swin.pth",
    "https://[::1]/swin.pth", "https://[fe80::1%25eth0]/x", "https://169.254.169.254/latest/meta-data/",
    "https://10.1.2.3/", "https://[::ffff:10.0.0.1]/", "https://files.example/a b", "https://files.example/\r\nX: y",
    "https://files.example\\@127.0.0.1/\x00", "https://files.example/ünï", "s3://bucket/swin.pth", "https://[::1",
]  # fmt: skip


@pytest.mark.parametrize("link", HOSTILE_LINKS)
def test_a_hostile_link_is_refused_without_a_look_at_the_network(web: Web, tmp_path: Path, link: str) -> None:
    with pytest.raises(InvalidRequest, match="refused") as raised:
        check(link)
    assert raised.value.fix
    with pytest.raises(InvalidRequest, match="refused"):
        fetch(link, tmp_path / "swin.pth", network=web.network())
    assert web.contacted == []


@pytest.mark.parametrize("link", [*HOSTILE_LINKS[:3], *HOSTILE_LINKS[7:17]])
def test_a_redirect_to_a_hostile_link_is_refused_and_nothing_is_kept(web: Web, tmp_path: Path, link: str) -> None:
    web.pages["files.example/v1/swin.pth"] = (302, {"Location": link}, b"")
    with pytest.raises(InvalidRequest, match="refused"):
        fetch(LINK, tmp_path / "swin.pth", network=web.network())
    assert web.contacted == [f"{PUBLIC}:443"]
    assert left(tmp_path) == set()


def test_a_redirect_to_a_name_of_a_private_address_is_refused(web: Web, tmp_path: Path) -> None:
    web.names["inside.example"] = ["10.0.0.8"]
    web.pages["files.example/v1/swin.pth"] = (301, {"Location": "https://inside.example/secrets"}, b"")
    with pytest.raises(InvalidRequest, match=r"10\.0\.0\.8 is not a public address"):
        fetch(LINK, tmp_path / "swin.pth", network=web.network())
    assert web.contacted == [f"{PUBLIC}:443"]


def test_a_name_that_changes_its_meaning_after_the_check_changes_nothing(web: Web, tmp_path: Path) -> None:
    web.names["files.example"] = [PUBLIC, "127.0.0.1"]
    assert fetch(LINK, tmp_path / "swin.pth", network=web.network()) == DIGEST
    assert web.contacted == [f"{PUBLIC}:443"]


def test_one_private_address_among_public_ones_is_enough_to_refuse(web: Web, tmp_path: Path) -> None:
    network = Network(lambda host: [PUBLIC, "192.168.0.1"], web.connect, web.context, dict)
    with pytest.raises(InvalidRequest, match=r"192\.168\.0\.1"):
        fetch(LINK, tmp_path / "swin.pth", network=network)
    assert web.contacted == []


def offline(network: Network, target: Path) -> NotAvailable:
    with pytest.raises(NotAvailable, match="cannot be downloaded") as raised:
        fetch(LINK, target, network=network)
    assert str(target) in raised.value.fix
    assert 'pretrained_weights=""' in raised.value.fix
    assert left(target.parent) == set()
    return raised.value


def test_without_a_network_the_error_names_the_manual_step(web: Web, tmp_path: Path) -> None:
    web.names.clear()
    assert "name or service not known" in offline(web.network(), tmp_path / "swin.pth").message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {}, b""), "answers 404"),
        ((200, {"Content-Length": "400000"}, CONTENT), "broke at byte 350000"),
        ((200, {"Content-Length": "9999999999"}, CONTENT), "larger than 4 GiB"),
        ((200, {"Content-Length": "many"}, CONTENT), "cannot be downloaded"),
        ((200, {"Content-Length": "0"}, b""), "the file is empty"),
        ((200, {"Content-Length": ""}, CONTENT[:7]), "does not say how long"),
        ((302, {"Location": "https://files.example/v1/swin.pth"}, b""), "more than 5 redirects"),
        ((302, {}, b""), "answers 302"),
    ],
)
def test_what_does_not_come_whole_is_not_kept(
    web: Web, tmp_path: Path, answer: tuple[int, dict[str, str], bytes], words: str
) -> None:
    web.pages["files.example/v1/swin.pth"] = answer
    assert words in offline(web.network(), tmp_path / "swin.pth").message


def test_a_certificate_of_somebody_else_is_refused(web: Web, tmp_path: Path) -> None:
    web.names["other.example"] = [PUBLIC]
    with pytest.raises(NotAvailable, match=r"(?i)certificate"):
        fetch("https://other.example/swin.pth", tmp_path / "swin.pth", network=web.network())
    network = Network(web.resolve, web.connect, ssl.create_default_context, dict)
    assert "certificate" in offline(network, tmp_path / "swin.pth").message.lower()
    assert web.asked == []


def test_another_checksum_than_the_known_one_is_refused_and_not_kept(web: Web, tmp_path: Path) -> None:
    target = tmp_path / "swin.pth"
    with pytest.raises(InvalidRequest, match=f"its sha256 is {DIGEST}"):
        fetch(LINK, target, sha256="0" * 64, network=web.network())
    assert left(tmp_path) == set()
    assert fetch(LINK, target, sha256=DIGEST.upper(), network=web.network()) == DIGEST


def test_whoever_reports_may_stop_it_and_nothing_is_kept(web: Web, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def report(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        fetch(LINK, tmp_path / "swin.pth", progress=report, network=web.network())
    assert left(tmp_path) == set()


def test_a_proxy_is_told_the_name_and_may_want_a_login(web: Web, tmp_path: Path) -> None:
    """A proxy that accepts the tunnel and then breaks off: what was asked of it is what is looked at."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard = list[bytes]()

    def serve() -> None:
        connection, _ = listener.accept()
        heard.append(connection.recv(4096))
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    web.proxies["https"] = f"http://me:p%40ss@127.0.0.1:{listener.getsockname()[1]}"
    offline(web.network(), tmp_path / "swin.pth")
    thread.join(5)
    listener.close()
    assert heard[0].startswith(b"CONNECT files.example:443 ")
    assert b"Basic bWU6cEBzcw==" in heard[0]
    assert web.contacted == []


@pytest.mark.parametrize("path", ["/ptm/../../etc/x", "/..", "/", "", "relative/x", "/a/\x00b"])
def test_a_place_outside_the_cache_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="destination_path"):
        place(path)


def test_a_plans_item_becomes_the_file_in_the_cache(web: Web, tmp_path: Path) -> None:
    target = "{home}/" + place("/ptm/swin/swin.pth")
    item: dict[str, Any] = {"kind": "download", "source": LINK, "target": target, "keys": ("a.b",), "options": {}}
    told = list[tuple[str, float]]()
    places = prepare.stage(
        [json.loads(json.dumps(item))], home=tmp_path, job_dir=tmp_path / "job", network=web.network(),
        progress=lambda what, part: told.append((what, part)),
    )  # fmt: skip
    assert places == {target: str(tmp_path / "cache/ptm/swin/swin.pth")}
    assert (tmp_path / "cache/ptm/swin/swin.pth").read_bytes() == CONTENT
    assert told[-1] == ("downloading swin.pth", 1.0)
