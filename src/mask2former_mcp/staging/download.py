"""A published file over https, once: checked hop by hop, kept in the cache with its checksum.

Every address that is contacted is checked first: https only, the default port, no login in the URL, and a host whose
addresses are all public. The connection goes to the address that was checked, so that a name which means another one a
moment later changes nothing. Behind a proxy of the environment it is the proxy who resolves: there the form of the
URL, and an address in it, are all that can be checked.
"""

import base64
import hashlib
import http.client
import ipaddress
import os
import socket
import ssl
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from mask2former_mcp.errors import InvalidRequest, NotAvailable
from mask2former_mcp.staging.locks import locked

_HOPS = 5
_TIMEOUT_S = 30.0
_LIMIT = 4 << 30  # bytes: the largest published backbone is below 1 GB
_PIECE = 1 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_INWARD = tuple(map(ipaddress.ip_network, (  # which Python counts as public, and some network may lead inside
    "::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "fec0::/10", "192.0.0.0/24",
)))  # fmt: skip
_RULE = "https only, on the default port, without a login"
Progress = Callable[[int, int], None]  # bytes done, bytes in all; may raise to stop


def addresses(host: str) -> Sequence[str]:
    """What a host name stands for now. OSError when nobody knows it."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)))


def _connect(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), _TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Network:
    """The edge of this process: names, connections, whom to trust, proxies."""

    resolve: Callable[[str], Sequence[str]] = addresses
    connect: Callable[[str, int], socket.socket] = _connect
    trust: Callable[[], ssl.SSLContext] = ssl.create_default_context
    proxies: Callable[[], dict[str, str]] = urllib.request.getproxies


PUBLIC = Network()


def place(destination: str) -> str:
    """Where a bundle's `destination_path` lies below the home. InvalidRequest: it would lie elsewhere."""
    parts = PurePosixPath(destination).parts[1:]
    if not destination.startswith("/") or not parts or ".." in parts or any(ord(c) < 32 for c in destination):
        raise InvalidRequest(
            f"the bundle's destination_path {destination!r} is not an absolute path of a file without ..",
            fix="Correct the bundle's skill_info.yaml.",
        )
    return str(PurePosixPath("cache", *parts))


def fetch(
    link: str,
    target: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    waiting: Callable[[], None] | None = None,
    network: Network = PUBLIC,
) -> str:
    """Makes `target` the linked file, unless it is there, and returns its sha256 (kept in `<target>.sha256`).

    `waiting` is called again and again while another process fetches it, and may raise.

    InvalidRequest: a refused address, or another checksum than `sha256`. NotAvailable: it cannot be fetched; the error
    names what to do by hand.
    """
    beside = target.with_name(f"{target.name}.sha256")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock"), waiting):
        if target.exists():  # fetched before, or put there by hand
            with target.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if beside.exists():
                _must_be(beside.read_text(encoding="utf-8").strip(), digest, target)
        else:
            digest = _Download(link, target, sha256, progress, network).run()
        _must_be(sha256, digest, target)
        beside.write_text(f"{digest}\n", encoding="utf-8")
    return digest


def check(link: str) -> SplitResult:
    """The parts of an address that may be asked. InvalidRequest names the rule. Resolves nothing."""
    if any(ord(c) <= 32 or ord(c) >= 127 for c in link):
        raise _refused(link, "it holds spaces, control characters or letters beyond ASCII")
    try:
        parts = urlsplit(link)
        port, host = parts.port, parts.hostname
    except ValueError as cause:
        raise _refused(link, str(cause)) from cause
    if parts.scheme != "https" or not host or parts.username is not None or port not in (None, 443) or "%" in host:
        raise _refused(link, _RULE)
    with suppress(ValueError):
        _must_be_public(link, str(ipaddress.ip_address(host)))
    return parts


def _must_be_public(link: str, address: str) -> None:
    found = ipaddress.ip_address(address.partition("%")[0])
    inside = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    if found.version == 6 and found in _NAT64:
        inside = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    meant = [one for one in (found, inside) if one is not None]
    if any(not one.is_global or one.is_multicast or any(one in network for network in _INWARD) for one in meant):
        raise _refused(link, f"{address} is not a public address")


class _Download:
    """One file on its way from one link, through redirects, into one place."""

    def __init__(
        self, link: str, target: Path, sha256: str | None, progress: Progress | None, network: Network
    ) -> None:
        self.link, self.target, self.sha256 = link, target, sha256
        self.progress, self.network = progress, network

    def run(self) -> str:
        """The file's sha256."""
        part = self.target.with_name(f".{self.target.name}.part")
        try:
            with self._answer() as answer:
                digest = self._receive(answer, part)
            _must_be(self.sha256, digest, self.target)
            part.replace(self.target)
        except (OSError, http.client.HTTPException, ValueError) as cause:
            raise self._not_fetched(str(cause) or type(cause).__name__) from cause
        finally:
            part.unlink(missing_ok=True)
        return digest

    def _answer(self) -> http.client.HTTPResponse:
        """The first answer that is no redirect; every hop is checked like the first."""
        here = self.link
        for _ in range(_HOPS + 1):
            parts = check(here)
            connection = self._connection(here, parts)
            connection.request("GET", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}")
            answer = connection.getresponse()
            if answer.status in _REDIRECTS and (said := answer.headers.get("Location")):
                connection.close()
                here = urljoin(here, said)
                continue
            if answer.status != http.HTTPStatus.OK:
                connection.close()
                raise http.client.HTTPException(f"{parts.hostname} answers {answer.status} {answer.reason}")
            return answer
        raise http.client.HTTPException(f"more than {_HOPS} redirects")

    def _connection(self, link: str, parts: SplitResult) -> http.client.HTTPSConnection:
        host = str(parts.hostname)
        trust = self.network.trust()
        proxy = self.network.proxies().get("https")
        if proxy and not urllib.request.proxy_bypass(host):
            return _proxied(proxy, host, trust)
        found = self.network.resolve(host)
        for address in found:
            _must_be_public(link, address)
        return _Pinned(host, found, trust, self.network)

    def _receive(self, answer: http.client.HTTPResponse, part: Path) -> str:
        if answer.length is None and not answer.chunked:
            raise http.client.HTTPException("the answer does not say how long the file is")
        total = answer.length or 0
        digest, done = hashlib.sha256(), 0
        with part.open("wb") as out:
            while piece := answer.read1(_PIECE):
                done += len(piece)
                if max(done, total) > _LIMIT:
                    raise http.client.HTTPException(f"the file is larger than {_LIMIT >> 30} GiB")
                out.write(piece)
                digest.update(piece)
                if self.progress:
                    self.progress(done, max(total, done))
            out.flush()
            os.fsync(out.fileno())
        if total and done != total:
            raise http.client.HTTPException(f"the transfer broke at byte {done} of {total}")
        if not done:
            raise http.client.HTTPException("the file is empty")
        return digest.hexdigest()

    def _not_fetched(self, reason: str) -> NotAvailable:
        return NotAvailable(
            f"{self.link} cannot be downloaded: {reason}",
            fix=f"Download it where there is a network and put it at {self.target}, then resume_job; or pass "
            'pretrained_weights=<a file>, or pretrained_weights="" to train from scratch.',
        )


class _Pinned(http.client.HTTPSConnection):
    """Connects to addresses that were looked at, whatever the name means by now; the certificate is the name's."""

    def __init__(self, host: str, found: Sequence[str], trust: ssl.SSLContext, network: Network) -> None:
        super().__init__(host, 443, timeout=_TIMEOUT_S, context=trust)
        self._found, self._trust, self._network = found, trust, network

    def connect(self) -> None:
        failure: OSError | None = None
        for address in self._found:
            try:
                plain = self._network.connect(address, 443)
            except OSError as cause:
                failure = cause
                continue
            self.sock = self._trust.wrap_socket(plain, server_hostname=self.host)
            return
        raise failure or OSError(f"{self.host} has no address")


def _proxied(proxy: str, host: str, trust: ssl.SSLContext) -> http.client.HTTPSConnection:
    """A tunnel: the proxy sees the name, and nothing of what is said inside."""
    through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = http.client.HTTPSConnection(
        str(through.hostname), through.port or 80, timeout=_TIMEOUT_S, context=trust
    )
    login = f"{unquote(through.username or '')}:{unquote(through.password or '')}"
    encoded = base64.b64encode(login.encode()).decode()
    connection.set_tunnel(host, 443, headers={"Proxy-Authorization": f"Basic {encoded}"} if through.username else {})
    return connection


def _must_be(expected: str | None, digest: str, target: Path) -> None:
    if expected is not None and digest != expected.lower():
        raise InvalidRequest(
            f"{target} is not the published file: its sha256 is {digest}, not {expected}",
            fix=f"Remove {target} and {target.name}.sha256, and see whether the link still leads to that file.",
        )


def _refused(link: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"the link {link[:300]!r} is refused: {reason}", fix=f"Links: {_RULE}, to a public host. Or name a local file."
    )
