"""Hosts of their own networks: two network namespaces, and nothing but eth0 between them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from docml_trainer.container import ResourceConfig
from docml_trainer.errors import TrainingError
from docml_trainer.training.launch import leader
from tests.docml_trainer.jobfolder import JobFolder
from tests.docml_trainer.trainings import run_here, training_job, weights

HOSTS = ["algo-1", "algo-2"]
# Two namespaces, a veth pair whose ends are called eth0, and names: the leader's own is unknown to it, the other host learns it late.
NETWORK = """
set -e
mount --make-rprivate /
ip link set lo up
unshare --net sleep 600 & other=$!
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add eth0 type veth peer name eth0 netns $other
ip address add 10.77.0.1/24 dev eth0 && ip link set eth0 up
nsenter --net=/proc/$other/ns/net sh -c 'ip link set lo up; ip address add 10.77.0.2/24 dev eth0; ip link set eth0 up'
mount --bind {folder}/hosts-1 /etc/hosts
mount --bind {folder}/resolv.conf /etc/resolv.conf
{python} -m docml_trainer train > {folder}/out-1 2>&1 & first=$!
export SAGEMAKER_BASE_DIR={second}
unshare --mount nsenter --net=/proc/$other/ns/net sh -c 'mount --bind {folder}/hosts-2 /etc/hosts; exec {python} -m docml_trainer train' \
    > {folder}/out-2 2>&1 & second=$!
n=0; until grep -q Waiting {folder}/out-2 || [ $n = 300 ]; do n=$((n + 1)); sleep 0.2; done
echo 10.77.0.1 algo-1 >> {folder}/hosts-2
wait $second; echo $? > {folder}/code-2
wait $first; echo $? > {folder}/code-1
kill $other
"""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return


def run_on_two_hosts(folder: Path, jobs: list[JobFolder]) -> list[str]:
    """Run the trainings of two hosts at once; their logs. Skips where this machine allows no namespaces."""
    alone = ["unshare", "--net", "--mount", "--user", "--map-root-user"]
    if shutil.which("ip") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs `ip` and a kernel that allows network namespaces to this user")
    (folder / "hosts-1").write_text("127.0.0.1 localhost\n")
    (folder / "hosts-2").write_text("127.0.0.1 localhost\n")
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    for host, job in zip(HOSTS, jobs, strict=True):
        job.write_hosts(host, HOSTS, "eth0")
    script = textwrap.dedent(NETWORK).format(folder=folder, python=sys.executable, second=jobs[1].base)
    process = subprocess.Popen([*alone, "sh", "-c", script], env=jobs[0].environment(), start_new_session=True)
    try:
        process.wait(240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    logs = [(folder / f"out-{number}").read_text() for number in (1, 2)]
    codes = [(folder / f"code-{number}").read_text().strip() for number in (1, 2)]
    assert codes == ["0", "0"], logs
    return logs


def test_two_hosts_with_nothing_but_eth0_between_them_train_what_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = training_job(tmp_path / "alone", hyperparameters={"epochs": 1, "train_batch_size": 8})
    assert run_here(alone, monkeypatch) == 0, alone.failure
    halves = {"epochs": 1, "train_batch_size": 4}
    jobs = [training_job(tmp_path / host, hyperparameters=halves, use_distributed=True) for host in HOSTS]
    first, second = run_on_two_hosts(tmp_path, jobs)
    assert "2 process(es) on cpu" in first
    assert "Waiting until the name of the host algo-1 can be resolved." in second
    for name, expected in weights(alone).items():
        torch.testing.assert_close(weights(jobs[0])[name], expected, atol=1e-6, rtol=0)


def test_a_leader_that_is_never_known_is_named() -> None:
    hosts = ResourceConfig("algo-2", ("algo-1.invalid", "algo-2"), None)
    with pytest.raises(TrainingError, match=r"algo-2 could not resolve the name of the host algo-1\.invalid for 0 s"):
        leader(hosts, None, patience=0.0)
