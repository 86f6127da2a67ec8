"""User code of local jobs and workers, on a machine whose metadata service gives credentials to whoever asks: it gets none, and has its hub."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from docml_contract.sandbox import find_exposure
from resources.jobs.local.gateway import Gateway, Refused, check

# A machine in a network namespace: its metadata service, services on its loopback interface and on its network's, and a hub elsewhere.
MACHINE = """
import ctypes, fcntl, http.server, json, os, pathlib, signal, socket, struct, subprocess, sys, threading, time
from docml_contract.jobs import JobSpec
from docml_contract.sandbox import Worker
from resources.jobs.backend import Job
from resources.jobs.local.container import Container
from tests.contracts.jobs_contract import preparation, training

def interface(name, address=None):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        if address:
            fcntl.ioctl(control, 0x8916, struct.pack("16sHH4s16x", name, socket.AF_INET, 0, socket.inet_aton(address)))
        fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", name, 1))

def serve(address, port, said):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)
        def log_message(self, *arguments): pass
    server = http.server.ThreadingHTTPServer((address, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

hub = os.fork()
if not hub:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # when the machine goes
    ctypes.CDLL(None).unshare(0x40000000)
    while True:
        try: interface(b"eth0", "203.0.113.7")
        except OSError: time.sleep(0.02)
        else: break
    serve("203.0.113.7", 80, b"weights")
    signal.pause()
while os.readlink(f"/proc/{hub}/ns/net") == os.readlink("/proc/self/ns/net"): time.sleep(0.02)
subprocess.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(hub)], check=True)
interface(b"eth0", "203.0.113.1")
interface(b"lo")
interface(b"lo:1", "169.254.169.254")
serve("169.254.169.254", 80, b"CANARY of the machine's role")
serve("127.0.0.1", 3000, b"CANARY of a service on this machine")
serve("203.0.113.1", 80, b"CANARY of a service at this machine's address in its network")

folder, attack = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
found = {}
worker = Worker(folder / "worker", attack.read_text(), dict(os.environ))
outcome = worker.run({}, folder)
assert outcome.error is None, outcome.traceback
worker.close()
found["process_func"] = json.loads((folder / "found").read_text())
for spec in (preparation(), preparation().model_copy(update={"step": "inference"}), training()):
    base = folder / spec.step
    base.mkdir()
    container = Container(Job.plan(spec, 1, "file:///store"), base, base / "log", ["algo-1"], 0)
    container.start([sys.executable, "-c", attack.read_text() + "print(json.dumps(look()))"], dict(os.environ))
    container.go()
    while container.exit_code is None: time.sleep(0.02)
    container.kill()
    found[spec.step] = json.loads((base / "log").read_text().splitlines()[-1])
os.kill(hub, signal.SIGKILL)
print(json.dumps(found))
"""
ATTACK = """
import json, http.client, os, urllib.request
URLS = ["http://169.254.169.254/", "http://2852039166/", "http://[::ffff:169.254.169.254]/", "http://127.0.0.1:3000/", "http://localhost:3000/"]
URLS += ["http://203.0.113.1/"]
def fetch(url, *handlers):
    try: return urllib.request.build_opener(*handlers).open(url, timeout=20).read().decode()
    except (OSError, http.client.HTTPException): return ""
def tunnel(host):
    proxy = os.environ.get("HTTPS_PROXY", "").rpartition("/")[2]
    try:
        connection = http.client.HTTPConnection(proxy, timeout=20)
        connection.set_tunnel(host, 80)
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException): return ""
def look():
    found = [fetch(url) for url in URLS] + [fetch(url, urllib.request.ProxyHandler({})) for url in URLS]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ""
    found += [fetch(url) for url in URLS] + [tunnel(host) for host in ("169.254.169.254", "2852039166", "203.0.113.1")]
    return {"canaries": [each for each in found if "CANARY" in each], "hub": [fetch("http://203.0.113.7/a?b"), tunnel("203.0.113.7")]}
def process_func(artifact, directory):
    (directory / "found").write_text(json.dumps(look()))
"""


@pytest.mark.skipif(
    find_exposure() is not None or shutil.which("ip") is None, reason="this machine allows no namespaces, or lacks `ip`"
)
def test_no_user_code_reaches_the_metadata_service_and_hubs_go_on_working(tmp_path: Path) -> None:
    (tmp_path / "attack.py").write_text(ATTACK)
    machine = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", MACHINE]
    done = subprocess.run(
        [*machine, str(tmp_path), str(tmp_path / "attack.py")],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    fetched, nothing = ["weights", "weights"], ["", ""]
    assert json.loads(done.stdout) == {
        "process_func": {"canaries": [], "hub": nothing},
        "preparation": {"canaries": [], "hub": fetched},
        "inference": {"canaries": [], "hub": nothing},
        "training": {"canaries": [], "hub": fetched},
    }


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "169.254.170.2", "224.0.0.1", "100.100.100.200"),
        *(
            "::1",
            "::",
            "fe80::1%lo",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
        ),
    ],
)
def test_addresses_of_the_machine_itself_are_refused(address: str) -> None:
    with pytest.raises(Refused, match="is not for jobs"):
        check(address)


@pytest.mark.parametrize("address", ["10.0.0.7", "203.0.113.7", "2606:2800:220:1::1"])
def test_other_addresses_are_not(address: str) -> None:
    check(address)


@pytest.mark.parametrize("host", ["localhost", "2852039166", "0x7f.1", "127.1"])
def test_what_stands_for_such_an_address_is_not_asked_of_a_proxy_either(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("127.0.0.1", 0)) as listener:
        gateway = started({"HTTPS_PROXY": f"http://127.0.0.1:{proxy.getsockname()[1]}"}, listener)
        with socket.create_connection(listener.getsockname(), timeout=60) as client:
            client.sendall(f"CONNECT {host}:5432 HTTP/1.1\r\n\r\n".encode())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 403 Forbidden")
        gateway.close()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def started(environment: dict[str, str], listener: socket.socket) -> Gateway:
    """A gateway that has been handed a socket."""
    gateway = Gateway(environment)
    with socket.socket(fileno=os.dup(gateway.theirs)) as unix:
        socket.send_fds(unix, [b"g"], [listener.fileno()])
    gateway.start()
    return gateway


def test_a_proxy_gets_the_password_that_the_job_does_not() -> None:
    heads = []

    def answer() -> None:
        with proxy.accept()[0] as client:
            heads.append(client.recv(1 << 16).decode())
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nweights")

    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=answer)
        answering.start()
        gateway = started(
            {"HTTP_PROXY": f"http://me:p%40ss@127.0.0.1:{proxy.getsockname()[1]}", "NO_PROXY": "intranet"}, listener
        )
        asked = urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{listener.getsockname()[1]}"})
        with urllib.request.build_opener(asked).open("http://hub.example/model", timeout=60) as answered:
            assert answered.read() == b"weights"
        gateway.close()
        answering.join()
    assert heads[0].startswith("GET http://hub.example/model HTTP/1.1\r\nProxy-Authorization: Basic bWU6cEBzcw==\r\n")
