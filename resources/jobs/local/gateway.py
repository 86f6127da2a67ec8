"""The way out of a local job that has no network of its own: an HTTP proxy for hubs, without the machine's own services.

The job listens for it on its loopback interface, in its network namespace, and hands the socket over (`docml_contract.seclude`); what is
asked there is fetched from here. The machine's own addresses, link-local ones and the metadata services of clouds, which answer whoever asks
on this machine with the machine's credentials, are refused. So is whatever is no HTTP: it finds no network at all. Where this machine
reaches the world through a proxy, a name is looked up here first; what it means to the proxy, the proxy decides.
"""

import contextlib
import ipaddress
import socket
import threading
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed does not name it

HEAD_BYTES = 64 << 10  # of a request's line and headers
BLOCK = 1 << 16
CONNECT_SECONDS = 30.0
MOST_CONNECTIONS = 128
# Metadata services outside the link-local range: AWS (IPv6), Alibaba, Azure, Oracle.
METADATA = frozenset({"fd00:ec2::254", "fd00:ec2::23", "100.100.100.200", "168.63.129.16", "192.0.0.192"})
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Refused(Exception):
    """What is asked for is not for jobs, or cannot be reached; one sentence."""


class Gateway:
    """Serves one container until `close`. `theirs` is the descriptor that the container's first process inherits."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._ours, self._theirs = socket.socketpair()
        self._listener: socket.socket | None = None
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._looked_up: dict[str, list[str]] = {}  # where only a proxy knows names, a look-up may take seconds

    @property
    def theirs(self) -> int:
        """To be inherited."""
        return self._theirs.fileno()

    def start(self) -> None:
        """Wait, in a thread, for the job's socket; once the job has been started."""
        self._theirs.close()
        threading.Thread(target=self._serve, name="gateway", daemon=True).start()

    def close(self) -> None:
        """Take no more requests."""
        for each in (self._ours, self._listener):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with self._ours, contextlib.suppress(OSError):
            _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
            if not descriptors:  # this machine allows no network namespaces: the job has the machine's network
                return
            with socket.socket(fileno=descriptors[0]) as self._listener:
                while True:
                    client, _ = self._listener.accept()
                    self._places.acquire()
                    threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                client.settimeout(CONNECT_SECONDS)
                try:
                    server = self._open(client)
                except Refused as refused:
                    said = f"docml: {refused}\n".encode()
                    head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n"
                    client.sendall(head.encode() + said)
                    return
                with server:
                    client.settimeout(None)
                    server.settimeout(None)
                    back = threading.Thread(target=_relay, args=(server, client), daemon=True)
                    back.start()
                    _relay(client, server)
                    back.join()
        finally:
            self._places.release()

    def _open(self, client: socket.socket) -> socket.socket:
        """The connection that a request asks for, with what the server is to get of the request. Raises Refused."""
        head, rest = _read_head(client)
        line, _, headers = head.partition(b"\r\n")
        method, target, version = line.decode("latin-1").split(" ") if line.count(b" ") == 2 else ("", "", "")
        url = _split(f"//{target}" if method == "CONNECT" else target)
        if method != "CONNECT" and url.scheme != "http":
            raise Refused("expected a request to an HTTP proxy: CONNECT, or an http:// URL")
        host, port = url.hostname or "", url.port or 80
        upstream = self._upstream("https" if method == "CONNECT" else "http", host)
        if upstream is not None:
            if host not in self._looked_up:
                self._looked_up[host] = look_up(host)
            for address in self._looked_up[host]:
                check(address)
            server = connect(upstream.hostname or "", upstream.port or 3128)
            server.sendall(line + b"\r\n" + _authorization(upstream) + headers + b"\r\n\r\n" + rest)
            return server
        server = connect(host, port, checked=True)
        if method == "CONNECT":
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            server.sendall(rest)
        else:
            path = url._replace(scheme="", netloc="").geturl() or "/"
            kept = [each for each in headers.split(b"\r\n") if not each.lower().startswith((b"connection:", b"proxy-"))]
            request = f"{method} {path} {version}".encode("latin-1")
            server.sendall(b"\r\n".join([request, *kept, b"Connection: close", b"", b""]) + rest)
        return server

    def _upstream(self, scheme: str, host: str) -> SplitResult | None:
        """The proxy through which this machine reaches a host, with the password that the job does not get."""
        named = self._environment.get(f"{scheme}_proxy") or self._environment.get(f"{scheme.upper()}_PROXY")
        without = self._environment.get("no_proxy") or self._environment.get("NO_PROXY") or ""
        if not named or proxy_bypass_environment(host, {"no": without}):
            return None
        proxy = _split(named if "://" in named else f"http://{named}")
        if proxy.scheme != "http":
            raise Refused(
                f"this machine's proxy is a {proxy.scheme} one; expected HTTP_PROXY and HTTPS_PROXY to name an http:// one"
            )
        return proxy


def connect(host: str, port: int, *, checked: bool = False) -> socket.socket:
    """A connection; with `checked`, to no address that jobs must not reach. Raises Refused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"{host}: no such host ({error})") from error
    reason = ""
    for family, kind, protocol, _, address in found:
        if checked:
            check(str(address[0]))
        server = socket.socket(family, kind, protocol)
        try:
            server.settimeout(CONNECT_SECONDS)
            server.connect(address)
        except OSError as error:
            server.close()
            reason = error.strerror or str(error)
            continue
        return server
    raise Refused(f"{host}: cannot be reached ({reason})")


def look_up(host: str) -> list[str]:
    """The addresses that a name, or a number that stands for one, has on this machine; none where only a proxy knows it."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def check(host: str) -> None:
    """Raises Refused for an address that jobs must not reach."""
    address = ipaddress.ip_address(host.partition("%")[0])
    inner = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inner += [each for each in (address.ipv4_mapped, address.sixtofour) if each is not None]
        inner += [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)] if address in _NAT64 else []
    for each in inner:
        special = each.is_loopback or each.is_link_local or each.is_unspecified or each.is_multicast
        if special or str(each) in METADATA or _is_own(each):
            raise Refused(f"{host} is not for jobs: the machine's own services and credentials answer there")


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is an address of this machine: others cannot be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """A request up to its empty line, and what came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        block = client.recv(BLOCK)
        data += block
        if not block or len(data) > HEAD_BYTES:
            raise Refused("expected the head of an HTTP request")
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _split(url: str) -> SplitResult:
    try:
        found = urlsplit(url)
        _ = found.port
    except ValueError as error:
        raise Refused(f"no address: {error}") from error
    return found


def _authorization(proxy: SplitResult) -> bytes:
    if proxy.username is None:
        return b""
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return b"Proxy-Authorization: Basic " + b64encode(user.encode()) + b"\r\n"


def _relay(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until the end, and pass that on too."""
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK):
            target.sendall(block)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
