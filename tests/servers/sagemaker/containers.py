"""A runtime that runs every job as real subprocesses over a real `/opt/ml` layout, relocated per host.

One process group a host. Hosts are named by loopback addresses, so that whatever rendezvous a training uses resolves.
`images` maps an image URI to its ENTRYPOINT. Stop sends SIGTERM to the entrypoint alone, as the service does, and SIGKILL
to everything after `grace` seconds.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.jobs import PROCESSING, TRAINING, TUNING, Job
from tests.servers.sagemaker.neighbours import CloudWatchLogs
from tests.servers.sagemaker.refusals import missing_image
from tests.servers.sagemaker.service import SageMaker
from tests.servers.sagemaker.transfer import Transfer
from tests.servers.sagemaker.tuning import Tuner

BASE = "/opt/ml"
CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)


@dataclass
class Host:
    """One machine of a job: its name, its /opt/ml and its process."""

    name: str
    folder: Path
    process: subprocess.Popen[str] | None = None
    reader: threading.Thread | None = None

    def place(self, path: str) -> Path:
        """Where an absolute container path below /opt/ml lies here."""
        return self.folder / path.removeprefix(BASE).lstrip("/")


class SubprocessRuntime:
    """See the module's docstring. `environment` is what the container gets besides the job's own variables."""

    def __init__(
        self,
        work: Path,
        transfer: Transfer,
        logs: CloudWatchLogs,
        faults: Faults,
        images: dict[str, list[str]],
        environment: dict[str, str],
        *,
        grace: float = 120.0,
        spot_after: float = 1.0,
    ) -> None:
        self.work = work
        self.transfer = transfer
        self.logs = logs
        self.faults = faults
        self.images = images
        self.environment = environment
        self.grace = grace
        self.spot_after = spot_after
        self.service: SageMaker | None = None
        self._closing = threading.Event()
        self._jobs: list[tuple[Job, list[Host]]] = []

    def start(self, job: Job) -> None:
        target = self._tune if job.kind is TUNING else self._run
        threading.Thread(target=target, args=(job,), name=job.name, daemon=True).start()

    def close(self) -> None:
        """Kill whatever still runs."""
        self._closing.set()
        for _, hosts in self._jobs:
            self._signal(hosts, signal.SIGKILL, whole_group=True)

    def _tune(self, job: Job) -> None:
        assert self.service is not None
        tuner = Tuner(self.service, job)
        while not self._closing.wait(0.1):
            if tuner.step():
                return

    def _run(self, job: Job) -> None:
        try:
            self._run_job(job)
        except FileNotFoundError as error:
            job.finish("Failed", reason=f"ClientError: Data download failed: {error}")
        except Exception:
            job.finish("Failed", reason=f"InternalServerError: {traceback.format_exc()[-900:]}")

    def _run_job(self, job: Job) -> None:
        if self.faults.job("capacity"):
            job.finish("Failed", reason=CAPACITY)
            return
        image = job.request.get("AppSpecification", {}).get("ImageUri", "")
        if job.kind is PROCESSING and image not in self.images:
            job.finish("Failed", reason=missing_image(image))
            return
        hosts = self._lay_out(job)
        self._jobs.append((job, hosts))
        interrupted = job.kind is TRAINING and self._is_spot(job) and self.faults.job("spot")
        while True:
            end = self._attempt(job, hosts, interrupt=interrupted)
            self._sync_checkpoints(job, hosts)
            if end != "interrupted":
                break
            interrupted = False
            job.enter("Interrupted", "Training job interrupted by a spot reclaim")
            job.enter("Starting", "Restarting after the interruption")
        self._conclude(job, hosts, end)

    # -- before

    def _lay_out(self, job: Job) -> list[Host]:
        cluster = job.request["ProcessingResources"]["ClusterConfig"] if job.kind is PROCESSING else None
        resources = cluster or job.request["ResourceConfig"]
        names = [f"127.0.0.{index + 1}" for index in range(resources.get("InstanceCount", 1))]
        hosts = [Host(name, self.work / job.kind.name / job.name / f"algo-{i + 1}") for i, name in enumerate(names)]
        job.enter("Downloading", "Downloading input data")
        for index, host in enumerate(hosts):
            config = {"current_host": host.name, "hosts": names, "network_interface_name": "lo"}
            if job.kind is PROCESSING:
                self._lay_out_processing(job, host, config, (index, len(hosts)))
            else:
                self._lay_out_training(job, host, config, (index, len(hosts)))
        return hosts

    def _lay_out_training(self, job: Job, host: Host, config: dict[str, Any], shard: tuple[int, int]) -> None:
        for folder in ("model", "output/data", "checkpoints"):
            (host.folder / folder).mkdir(parents=True, exist_ok=True)
        channels = job.request.get("InputDataConfig", [])
        self._write(host, "input/config/hyperparameters.json", job.request.get("HyperParameters", {}))
        self._write(host, "input/config/resourceconfig.json", config)
        self._write(
            host,
            "input/config/inputdataconfig.json",
            {channel["ChannelName"]: {"TrainingInputMode": "File"} for channel in channels},
        )
        for channel in channels:
            source = channel["DataSource"]["S3DataSource"]
            self.transfer.download(source, host.place(f"{BASE}/input/data/{channel['ChannelName']}"), shard)
        checkpoint = job.request.get("CheckpointConfig")
        if checkpoint:
            folder = host.place(checkpoint.get("LocalPath", f"{BASE}/checkpoints"))
            self.transfer.download_prefix(checkpoint["S3Uri"], folder, required=False)

    def _lay_out_processing(self, job: Job, host: Host, config: dict[str, Any], shard: tuple[int, int]) -> None:
        (host.folder / "output").mkdir(parents=True, exist_ok=True)
        self._write(host, "config/resourceconfig.json", config)
        self._write(host, "config/processingjobconfig.json", job.request)
        for entry in job.request.get("ProcessingInputs", []):
            source = entry["S3Input"]
            self.transfer.download(source, host.place(source["LocalPath"]), shard)
        for entry in job.request.get("ProcessingOutputConfig", {}).get("Outputs", []):
            host.place(entry["S3Output"]["LocalPath"]).mkdir(parents=True, exist_ok=True)

    @staticmethod
    def _write(host: Host, path: str, content: Any) -> None:
        file = host.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    # -- while it runs

    def _attempt(self, job: Job, hosts: list[Host], *, interrupt: bool) -> str:
        """Run the containers once: `ended`, `interrupted`, `stopped` or `max_runtime`."""
        job.enter("Training" if job.kind is TRAINING else "Processing", "The containers run")
        job.started = job.started or job.clock()
        for index, host in enumerate(hosts):
            self._spawn(job, host, index)
        limit = job.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86_400)
        begun, told, end, synced = time.monotonic(), 0.0, "ended", 0.0
        while any(host.process and host.process.poll() is None for host in hosts):
            now = time.monotonic()
            if not told:
                if job.stop_requested.is_set():
                    end = "stopped"
                elif now - begun > limit:
                    end = "max_runtime"
                elif interrupt and now - begun > self.spot_after:
                    end = "interrupted"
                if end != "ended":
                    told = now
                    self._signal(hosts, signal.SIGTERM)
            dead = any(host.process and host.process.poll() not in (None, 0) for host in hosts)
            if (told and now - told > self.grace) or (dead and not told and len(hosts) > 1):
                self._signal(hosts, signal.SIGKILL, whole_group=True)
            if now - synced > 0.5:
                self._sync_checkpoints(job, hosts)
                synced = now
            time.sleep(0.02)
        for host in hosts:
            assert host.reader is not None
            host.reader.join(5)
        self._signal(hosts, signal.SIGKILL, whole_group=True)  # a container's end is the end of all its processes
        return end

    def _spawn(self, job: Job, host: Host, index: int) -> None:
        environment = self.environment | job.request.get("Environment", {})
        environment |= {"SAGEMAKER_BASE_DIR": str(host.folder), "PYTHONUNBUFFERED": "1"}
        if job.kind is TRAINING:
            environment |= {"TRAINING_JOB_NAME": job.name, "TRAINING_JOB_ARN": job.arn}
        host.process = subprocess.Popen(
            self._command(job),
            env=environment,
            cwd=host.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        stream = f"{job.name}/algo-{index + 1}-{int(job.created)}"
        self.logs.open(job.kind.log_group, stream)
        host.reader = threading.Thread(target=self._pump, args=(job, host.process, stream), daemon=True)
        host.reader.start()

    def _command(self, job: Job) -> list[str]:
        if job.kind is PROCESSING:
            application = job.request["AppSpecification"]
            entrypoint = application.get("ContainerEntrypoint") or self.images[application["ImageUri"]]
            return [*entrypoint, *application.get("ContainerArguments", [])]
        algorithm = job.request["AlgorithmSpecification"]
        entrypoint = algorithm.get("ContainerEntrypoint") or self.images[algorithm["TrainingImage"]]
        return [*entrypoint, *algorithm.get("ContainerArguments", ["train"])]

    def _pump(self, job: Job, process: subprocess.Popen[str], stream: str) -> None:
        definitions = job.request.get("AlgorithmSpecification", {}).get("MetricDefinitions", [])
        assert process.stdout is not None
        with process.stdout:
            for raw in process.stdout:
                line = raw.rstrip("\n")
                self.logs.write(job.kind.log_group, stream, line or " ")
                for definition in definitions:
                    found = re.search(definition["Regex"], line)
                    if found:
                        job.metrics[definition["Name"]] = (float(found.group(1)), job.clock())

    @staticmethod
    def _signal(hosts: list[Host], number: signal.Signals, *, whole_group: bool = False) -> None:
        for host in hosts:
            if host.process is None:
                continue
            try:
                if whole_group:
                    os.killpg(host.process.pid, number)
                elif host.process.poll() is None:
                    host.process.send_signal(number)
            except ProcessLookupError:
                pass

    # -- after

    def _is_spot(self, job: Job) -> bool:
        return bool(job.request.get("EnableManagedSpotTraining"))

    def _sync_checkpoints(self, job: Job, hosts: list[Host]) -> None:
        """A training's checkpoints, and outputs of a processing job that are uploaded while it runs."""
        for entry in job.request.get("ProcessingOutputConfig", {}).get("Outputs", []):
            output = entry["S3Output"]
            for host in hosts if output["S3UploadMode"] == "Continuous" else []:
                self.transfer.sync(host.place(output["LocalPath"]), output["S3Uri"])
        checkpoint = job.request.get("CheckpointConfig")
        if checkpoint:
            folder = hosts[0].place(checkpoint.get("LocalPath", f"{BASE}/checkpoints"))
            self.transfer.sync(folder, checkpoint["S3Uri"])

    def _conclude(self, job: Job, hosts: list[Host], end: str) -> None:
        codes = [host.process.returncode for host in hosts if host.process]
        failed = next((code for code in codes if code), 0)
        job.enter("Uploading", "Uploading output")
        if job.kind is PROCESSING:
            self._upload_processing(job, hosts, failed)
        else:
            self._upload_training(job, hosts[0])
        if end == "max_runtime":
            job.finish("Stopped", "MaxRuntimeExceeded")
        elif end == "stopped":
            job.finish("Stopped")
        elif failed:
            job.finish("Failed", reason=self._reason(job, hosts, failed))
        else:
            job.finish("Completed")

    def _upload_training(self, job: Job, host: Host) -> None:
        if job.request["OutputDataConfig"].get("CompressionType") == "NONE":
            self.transfer.upload(host.folder / "model", job.artifacts_uri)
        else:
            self.transfer.upload_archive(host.folder / "model", f"{job.artifacts_uri}.tar.gz")

    def _upload_processing(self, job: Job, hosts: list[Host], failed: int) -> None:
        message = hosts[0].folder / "output/message"
        if message.is_file():
            job.exit_message = message.read_text()[:1024]
        if failed:
            return
        for entry in job.request.get("ProcessingOutputConfig", {}).get("Outputs", []):
            for host in hosts if entry["S3Output"]["S3UploadMode"] == "EndOfJob" else []:
                self.transfer.upload(host.place(entry["S3Output"]["LocalPath"]), entry["S3Output"]["S3Uri"])

    def _reason(self, job: Job, hosts: list[Host], code: int) -> str:
        if job.kind is PROCESSING:
            return f"AlgorithmError: See job logs for more information, exit code: {code}"
        for host in hosts:
            failure = host.folder / "output/failure"
            if failure.is_file():
                return f"AlgorithmError: {failure.read_text()}, exit code: {code}"
        return f"AlgorithmError: , exit code: {code}"
