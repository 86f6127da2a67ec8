"""The detached process of a local job: `python -m resources.jobs.local.supervisor FOLDER`.

It claims the job in the store (one of several starters wins), lays out the containers, runs them, mirrors the checkpoints, uploads
output and log, enforces MaxRuntime, looks for a Stop, ends what stands still, and writes the job's state (`state.py`).
"""

import errno
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from docml_contract.sandbox import make_unreadable
from resources.errors import MissingKey, ResourceError
from resources.jobs.local.container import Container, host_names, log_name, signs_of_life, unusable_folder
from resources.jobs.local.mirror import Mirror
from resources.jobs.local.state import Assignment, JobEnd, LocalJob, Stillness, failed, stopped
from resources.processes import this_process
from resources.store import Store

TICK_SECONDS = 0.1
# The folder in which the job works cannot be used, now or in a minute.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


class Supervisor:
    """Runs one local job."""

    def __init__(self, local: LocalJob) -> None:
        self.local = local
        self.job = local.job
        self.store = local.store

    def run(self) -> None:
        """Run the job; its end is in the state, whatever happens short of SIGKILL."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self.local, "terminated", True))
        try:
            try:
                self._run()
                self.local.end("Completed")
            except JobEnd as end:
                self.local.end(end.status, end.cause, end.reason)
            except MissingKey as error:
                self.local.end("Failed", "work", f"an input is missing: {error}")
            except ResourceError as error:
                self.local.end("Failed", "lost", str(error))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in UNUSABLE:
                self.local.end("Failed", "work", unusable_folder(self.local.base, error))
                return
            text = traceback.format_exc()[-1500:]
            self.local.end("Failed", "lost", f"the supervisor failed: {error!r}\n{text}")

    def _run(self) -> None:
        if self.job.spec.kind == "tuning":
            from resources.jobs.local.tuning import tune  # optuna is loaded where it is used

            tune(self.local)
            return
        names = host_names(self.job.spec)
        containers = [self.container("" if len(names) == 1 else f"host-{i + 1}", i) for i in range(len(names))]
        self.local.begin()
        for container in containers:
            container.lay_out(self.store, self.job.spec.hyperparameters)
        mirrors = self._mirrors(containers)
        restored = sum(mirror.restore() for mirror in mirrors)
        if restored:
            self.local.enter(f"goes on from {restored} files of earlier checkpoints")
        for mirror in mirrors:
            mirror.start()
        try:
            self.run_containers(containers)
        finally:
            for mirror in mirrors:
                mirror.stop()
        self._judge(containers)
        for container in containers if not containers[0].is_training else containers[:1]:
            self.local.upload(container.output)

    def _mirrors(self, containers: list[Container]) -> list[Mirror]:
        """Of the checkpoints: the first host of a training keeps them for all, each host of a preparation or a prediction its own."""
        if not self.job.keeps_checkpoints:
            return []
        keeping = containers[:1] if containers[0].is_training else containers
        return [Mirror(self.store, container.checkpoints, self.job.checkpoints) for container in keeping]

    def container(self, folder: str, index: int) -> Container:
        """A host of the job, with its own base folder."""
        log = self.local.logs / log_name(index)
        return Container(self.job, self.local.base / folder, log, host_names(self.job.spec), index)

    def run_containers(self, containers: list[Container]) -> None:
        """Start all hosts and wait for them. JobEnd when told to stop; one host's failure ends the others."""
        try:
            for container in containers:
                container.start(self.local.command, self.local.environment)
            self.local.note_containers([container.pid for container in containers])
            for container in containers:
                container.go()
            self.watch(containers)
        finally:
            for container in containers:
                container.kill()

    def watch(self, containers: list[Container]) -> None:
        """Until all have ended, or one has failed. JobEnd: told to stop, MaxRuntime, or nothing moves; the containers have ended."""
        begun = time.monotonic()
        stillness = Stillness()
        stop: JobEnd | None = None
        while True:
            codes = [container.exit_code for container in containers]
            running = any(code is None for code in codes)
            if not running or (stop is None and any(codes)):
                break
            if stop is None:
                stop = self.local.asked_to_stop() or self._out_of_time(begun)
                if stop is not None:
                    self.local.enter("is being stopped", status="Stopping")
            if stop is not None:
                for container in containers:
                    container.ask_to_stop()
                    container.enforce()
            elif stillness.look(lambda: signs_of_life(containers)):
                for sentence in stillness.tell():
                    self.local.enter(sentence)
                if stillness.is_stalled:
                    raise failed("lost", f"stalled: {stillness}")
                for container in containers:
                    if container.end_leftovers():
                        self.local.enter(
                            "its output is complete; processes or threads that it had left behind were ended"
                        )
            time.sleep(TICK_SECONDS)
        if stop is not None:
            raise stop

    def _out_of_time(self, begun: float) -> JobEnd | None:
        limit = self.job.spec.compute.max_runtime_seconds
        if time.monotonic() - begun <= limit:
            return None
        return stopped(
            "time", f"stopped after {limit} s, the longest it may run: raise MAX_RUNTIME_SECONDS of the step"
        )

    def _judge(self, containers: list[Container]) -> None:
        """JobEnd for containers that did not succeed: the first with a reason of its own speaks."""
        ended = [c for c in containers if c.exit_code] or [c for c in containers[:1] if not c.complete]
        if ended:
            speaker = next((c for c in ended if c.has_reason), ended[0])
            raise failed("lost" if all(c.was_killed for c in ended) else "work", speaker.reason())
        problem = containers[0].find_output_problem()
        if problem:
            raise failed("work", f"its output is not usable: {problem}")


def main(folder: Path) -> None:
    """Run the job of FOLDER/job.json to its end, unless another supervisor has claimed it."""
    make_unreadable()
    path = folder / "job.json"
    assignment = Assignment.from_bytes(path.read_bytes(), str(path))
    store = Store.open(assignment.store_url, environment=os.environ)
    local = LocalJob(folder, assignment, store, dict(os.environ), this_process())
    if local.claim():
        Supervisor(local).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
