"""Several training processes: one a GPU, or `cpu_processes` on a machine without, on every host of the job, through torchrun.

The launcher is what the image's ENTRYPOINT becomes, so that tuning's child jobs get it too and SIGTERM arrives here. It passes the signal
on to the processes and gives them the grace period; a process that dies takes the others down, and its own reason becomes the job's.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from docml_contract.base import ContractError, digest
from docml_contract.jobs import TrainTask
from docml_contract.log_lines import nonce_for_children
from docml_contract.manifests import write_atomically
from docml_contract.names import RAISE_INSTEAD
from docml_trainer.container import EXIT_STOPPED, Folders, ResourceConfig, explained_out_of_memory
from docml_trainer.errors import Stopped, TrainerError, TrainingError, UserCodeError

FAILURES = "DOCML_RANK_FAILURES"  # folder in which processes leave the reasons of their failures
# Where the hosts of a job meet: below the ports that systems hand out, and another one for every job, since several may share a machine.
FIRST_PORT, PORTS = 20_000, 10_000
GRACE_SECONDS = 100  # SageMaker kills 120 seconds after SIGTERM
START_SECONDS = 900  # hosts do not all start at once
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def main(folders: Folders, train: Callable[[], None]) -> None:
    """`python -m docml_trainer train`: call `train` in this process, or start the processes that do."""
    if not is_worker():
        folders.verify_inputs()
    processes = processes_per_host(folders.train_task())
    if not is_worker() and processes * len(folders.resource_config().hosts) > 1:
        launch(folders, processes)
        return
    with worker_failures() if is_worker() else nullcontext(), explained_out_of_memory():
        train()


def is_worker() -> bool:
    """Whether a launcher started this process."""
    return FAILURES in os.environ


def processes_per_host(task: TrainTask) -> int:
    """One process a GPU, or `cpu_processes` without; one where the task is not distributed."""
    if not task.use_distributed:
        return 1
    return torch.cuda.device_count() or task.cpu_processes


def launch(folders: Folders, processes: int) -> None:
    """Run the training in `processes` processes on this host, together with those of the other hosts.

    TrainingError if one of them died without a reason; SystemExit with the exit code of the processes otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    hosts = folders.resource_config()
    alone = len(hosts.hosts) == 1
    # Alone: the host's own name may lead to a network that the job does not have.
    address = "localhost" if alone else join_network(hosts)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    with tempfile.TemporaryDirectory(prefix="docml-failures-") as reasons:
        os.environ.update({FAILURES: reasons, **nonce_for_children()})
        config = LaunchConfig(
            min_nodes=len(hosts.hosts),
            max_nodes=len(hosts.hosts),
            nproc_per_node=processes,
            run_id="docml",
            rdzv_backend="c10d" if alone else "static",
            rdzv_endpoint="localhost:0" if alone else f"{leader(hosts, address)}:{meeting_port(folders)}",
            local_addr=address,
            rdzv_configs={"timeout": START_SECONDS} | ({} if alone else {"rank": hosts.index}),
            max_restarts=0,
            monitor_interval=0.2,
            **grace(LaunchConfig),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "docml_trainer", "train")
        except SignalException:
            raise Stopped(EXIT_STOPPED) from None
        except ChildFailedError as error:
            _explain(folders, Path(reasons), {rank: failure.exitcode for rank, failure in error.failures.items()})


def join_network(hosts: ResourceConfig) -> str | None:
    """Let NCCL and Gloo talk through the interface that leads to the other hosts, before anything of theirs starts; its address.

    By themselves they take the interface of the host's own name, or any. None if the machine has no such interface.
    """
    if hosts.interface is None or hosts.interface not in (name for _, name in socket.if_nameindex()):
        return None
    for variable in INTERFACE_VARIABLES:
        os.environ[variable] = hosts.interface
    request = struct.pack("256s", hosts.interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
        except OSError:  # no IPv4 address
            return None


def leader(hosts: ResourceConfig, address: str | None, patience: float = START_SECONDS) -> str:
    """Where all hosts meet: the first host by its name, at itself by its address, since its own name need not be known to it.

    Names of hosts that start later come to be known later. TrainingError if the leader's does not.
    """
    name = sorted(hosts.hosts)[0]
    if hosts.index == 0 and address is not None:
        return address
    begun, is_told = time.monotonic(), False
    while True:
        try:
            socket.getaddrinfo(name, None)
        except OSError as error:
            if time.monotonic() - begun > patience:
                raise TrainingError(
                    f"{hosts.current_host} could not resolve the name of the host {name} for {patience:.0f} s "
                    f"({error}); expected a name that the network "
                    "of the job knows (do the security groups let the job's hosts talk to each other and to DNS?)"
                ) from error
        else:
            return name
        if not is_told:
            print(f"Waiting until the name of the host {name} can be resolved.", flush=True)
        is_told = True
        time.sleep(1)


def grace(config: type[Any]) -> dict[str, Any]:
    """The grace period as the launcher's setting. torch 2.11 and older have none, and give processes 30 seconds."""
    known = {field.name for field in fields(config)}
    return {"shutdown_timeout": GRACE_SECONDS} if "shutdown_timeout" in known else {}


def meeting_port(folders: Folders) -> int:
    """The same on all hosts of a job, and hardly ever that of another job, or of another trial."""
    work = digest([folders.spec().spec_hash, folders.hyperparameters()])
    return FIRST_PORT + int(work[:8], 16) % PORTS


def _explain(folders: Folders, reasons: Path, exit_codes: dict[int, int]) -> None:
    """Which process failed first, and why; what the others say about lost connections is its consequence."""
    killed = {rank: -code for rank, code in exit_codes.items() if code < 0 and -code != signal.SIGTERM}
    if killed:
        rank, number = min(killed.items())
        raise TrainingError(
            f"training process {rank} was killed by {signal.Signals(number).name}"
            + (
                " (SIGKILL usually means that the machine ran out of memory: lower train_batch_size, or take a larger machine)"
                if number == signal.SIGKILL
                else ""
            )
        )
    said = sorted(
        (json.loads(path.read_text(encoding="utf-8")) for path in reasons.glob("*.json")), key=lambda r: r["time"]
    )
    if not said and EXIT_STOPPED in exit_codes.values():  # the signal reached a process before it reached the launcher
        raise Stopped(EXIT_STOPPED)
    if not said:
        with suppress(OSError):
            function = folders.running_function.read_text(encoding="utf-8")
            raise UserCodeError(f"{function} ended its process (exit codes {exit_codes}); {RAISE_INSTEAD}")
        raise TrainingError(f"training processes ended with exit codes {exit_codes} and gave no reason; see the log")
    first: dict[str, Any] = said[0]
    folders.fail(first["reason"], first["detail"])
    sys.exit(1)


@contextmanager
def worker_failures() -> Iterator[None]:
    """In a process that a launcher started: leave the reason of a failure for it, and end at once.

    At once, since a collective that waits for the others would otherwise hold the process back.
    """
    try:
        yield
    except Exception as error:
        expected = isinstance(error, TrainerError | ContractError)
        detail = "" if expected else traceback.format_exc()
        rank = os.environ["RANK"]
        said = {
            "time": time.time(),
            "reason": str(error) if expected else f"{type(error).__name__}: {error} (process {rank})",
            "detail": detail,
        }
        # Whole or not at all: the launcher ends the others as soon as one has failed.
        write_atomically(Path(os.environ[FAILURES]) / f"{rank}.json", json.dumps(said).encode())
        print(detail or f"Process {rank}: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)
