"""One call of `Jobs.run`: walk through the attempts at a piece of work until one has completed.

attempt n    no record          write the intent, create the job, follow it
             record, no end     the job runs: attach; it ended: take its end; there is none: create it
             Completed          take its output
             Failed, Stopped    attempt n + 1, within the budget where the failure is this Dagster run's own
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from docml_contract.base import UnreadableDocument
from docml_contract.jobs import JobSpec
from docml_contract.manifests import FileEntry, JobOutput
from docml_contract.names import OUTPUT, SPEC, WITHOUT_A_WORD
from resources.errors import MissingKey, ResourceError
from resources.jobs.backend import Cause, Job, JobState, NameTaken, NoCapacity
from resources.jobs.engine.records import JobContext, JobRecord
from resources.jobs.engine.watch import Canceled, JobWatch
from resources.jobs.interface import JobFailed, JobRefused, JobResult, JobStopped
from resources.store import StoredObject


@dataclass(frozen=True)
class AttemptEnd:
    """An attempt without a result."""

    state: JobState
    mine: bool  # started by this Dagster run, or watched to its end by it


class Attempts:
    """The state of one call of `Jobs.run`: the work, and the caller's watch over the job of the attempt at hand."""

    def __init__(self, context: JobContext, spec: JobSpec, files: Mapping[str, bytes], watch: JobWatch) -> None:
        self.context = context
        self.backend = context.backend
        self.records = context.records
        self.spec = spec
        self.files = files
        self.watch = watch
        self.holder = watch.holder
        self.listener = watch.listener

    # -- the walk

    def complete(self) -> JobResult:
        """See `Jobs.run`."""
        self._check_files()
        attempt = 1
        while True:
            job = Job.plan(self.spec, attempt, self.context.store_name)
            try:
                outcome = self._attempt(job)
            except Canceled:
                raise JobStopped(job.name, "canceled, and stopped") from None
            if isinstance(outcome, JobResult):
                return outcome
            if outcome.mine:
                self._wait_for_next(job, outcome.state)
            attempt += 1

    def _check_files(self) -> None:
        found = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        if found != self.spec.files:
            raise JobRefused(f"the files of {self.spec.step} are not those that its spec names: {sorted(found)}")

    def _wait_for_next(self, job: Job, state: JobState) -> None:
        seconds = self.watch.budget.after(state)
        if seconds is None:
            kind = JobStopped if state.status == "Stopped" else JobFailed
            raise kind(job.name, state.reason, last_lines=[*self.watch.last_lines], links=self.backend.links(job))
        self.listener.status(f"{job.name}: {state.reason}; next attempt in {seconds:.0f} s")
        try:
            self.watch.pause(seconds)
        except Canceled:
            raise JobStopped(job.name, f"canceled while waiting for the next attempt ({state.reason})") from None

    def _attempt(self, job: Job) -> JobResult | AttemptEnd:
        record = self.records.read(job.place, job.name)
        if record is not None and record.status != "Refused":
            job = replace(job, where=record.where)
        if record is not None and record.spec_hash != self.spec.spec_hash:
            return self._foreign(job, record)
        if record is not None and record.ended:
            return self._past(job, record)
        try:
            self.watch.take(job)
            record, fresh = (record, False) if record else self._intend(replace(job, nonce=secrets.token_hex(16)))
            job = replace(job, nonce=record.nonce, where=record.where if fresh else job.where)
            state = None if fresh else self.watch.ask(job, self.backend.observe)
            self.watch.may_exist = state is not None
            launched = state is None and self._launch(job, record)
            if not launched:
                self.listener.status(f"attached to the job {job.name}")
            if launched or record.holder == self.holder:
                self.watch.budget.attempts += 1
            return self._conclude(job, record, self.watch.follow(job), launched)
        except ResourceError:
            raise
        except BaseException:
            self.watch.abandon(job)
            raise
        finally:
            self.watch.drop()

    def _past(self, job: Job, record: JobRecord) -> JobResult | AttemptEnd:
        """An attempt whose end is on record."""
        mine = record.holder == self.holder
        self.watch.budget.attempts += mine
        if record.status == "Completed":
            result = self._result(job, record, launched=False)
            if result is not None:
                self.listener.status(f"took the result of the completed job {job.name}")
                return result
            state = JobState("Failed", reason="its output is no longer complete", cause="lost")
            return AttemptEnd(state, mine=False)
        cause = record.cause or "work"
        state = JobState("Stopped" if record.status == "Stopped" else "Failed", reason=record.reason, cause=cause)
        return AttemptEnd(state, mine)

    def _foreign(self, job: Job, record: JobRecord) -> AttemptEnd:
        """An attempt at other work under the same name: passed over if it has ended, stopped if nobody waits for it, else refused."""
        if not record.ended:
            state = self.watch.ask(job, self.backend.observe)
            if state is None or not state.ended:
                if self.watch.is_somebody_waiting(job):
                    raise JobRefused(
                        f"job {job.name} does other work under the same name (spec {record.spec_hash[:12]}…, wanted "
                        f"{self.spec.spec_hash[:12]}…), and its run waits for it: wait until it has ended, or stop that run, "
                        "then run again"
                    )
                if state is not None:
                    self.listener.status(
                        f"stopping the job {job.name}, which does other work and for which nobody waits"
                    )
                    self.watch.may_exist = True
                    state = self.watch.stop(job)
                    if state is None or not state.ended:
                        raise JobRefused(
                            f"job {job.name} does other work and has not stopped yet: run again in a few minutes"
                        )
            self.context.end(record, state or JobState("Failed", reason="it was never created", cause="lost"))
        return AttemptEnd(JobState("Failed", reason="did other work", cause="lost"), mine=False)

    # -- starting

    def _intend(self, job: Job) -> tuple[JobRecord, bool]:
        """(the job's record, whether it is new). Two callers with the same work meet in one record."""
        where = self.watch.ask(job, lambda job: self.backend.where())
        intent = JobRecord(
            name=job.name,
            backend=self.backend.name,
            where=where,
            attempt=job.attempt,
            spec_hash=self.spec.spec_hash,
            spec=self.spec,
            request=self.backend.request(job),
            nonce=job.nonce,
            holder=self.holder,
            created_at=self.context.clock(),
        )
        if self.records.intend(intent):
            return intent, True
        found = self.records.read(job.place, job.name)
        return found or intent, False

    def _launch(self, job: Job, record: JobRecord) -> bool:
        """Create the job; False if it exists by now."""
        self._stage(job)
        request = self.backend.request(job)
        if record.status == "Refused" or record.request != request:  # on other machines than first asked for
            update = {"status": "Asked", "reason": "", "request": request, "spec": self.spec, "holder": self.holder}
            where = job.where or self.watch.ask(job, lambda job: self.backend.where())
            self.records.write(record.model_copy(update={**update, "where": where}))
        self.listener.status(f"starting the job {job.name} (attempt {job.attempt})")
        self.watch.may_exist = True
        while True:
            try:
                self.watch.ask(job, self.backend.create)
                return True
            except NameTaken:
                self._recognize(job)
                return False
            except NoCapacity as error:
                seconds = self.watch.budget.capacity()
                if seconds is None:
                    self._refuse(job, f"no machine was to be had: {error}")
                    raise JobRefused(f"job {job.name}: no machine was to be had: {error}") from error
                self.listener.status(f"no capacity ({error}); asking again in {seconds:.0f} s")
                self.watch.pause(seconds)
            except JobRefused as error:
                self._refuse(job, str(error))
                raise

    def _stage(self, job: Job) -> None:
        contents = {SPEC: self.spec.to_bytes(), **self.files}
        for name, content in contents.items():
            self.context.store.put(f"{job.spec_prefix}/{name}", content)
        self.backend.stage(job)

    def _refuse(self, job: Job, reason: str) -> None:
        """Record that the job was never created; a later run may use its name."""
        record = self.records.read(job.place, job.name)
        if record is not None:
            self.records.write(record.model_copy(update={"status": "Refused", "reason": reason}))
        self.records.deactivate(job.name)
        self.records.release(job.place, job.name, self.holder)

    def _recognize(self, job: Job) -> None:
        """Refuse a job that has our name and does other work: a store at the same place may have existed before."""
        self.watch.see(job)
        found = self.watch.ask(job, self.backend.spec_hash)
        if found != self.spec.spec_hash:
            self._refuse(job, "its name is taken by a job with another spec")
            raise JobRefused(
                f"job {job.name} exists already and does other work (spec {found or 'unknown'}): was the store "
                f"{self.context.store.url} deleted and created again? Take the next run number"
            )

    # -- concluding

    def _conclude(self, job: Job, record: JobRecord, state: JobState, launched: bool) -> JobResult | AttemptEnd:
        current = self.records.read(job.place, job.name) or record  # the sweep may have marked it meanwhile
        result = None
        if state.status == "Completed":
            prefix = self.watch.ask(job, self.backend.collect)
            current = current.model_copy(update={"output_prefix": prefix})
            result = self._result(job, self.context.with_end(current, state), launched)
            if result is None:
                # One that is there and not whole is the job's own doing, and so is none at all of a job that was watched from its beginning,
                # unless its supervisor has looked at it here before it was stored; that of another may have been removed since.
                is_there = self.context.store.exists(f"{prefix}/{OUTPUT}")
                its_own = self.context.store.local_path is None and (is_there or launched)
                cause: Cause = "work" if its_own else "lost"
                lacks = f"writing {OUTPUT}: {WITHOUT_A_WORD}" if its_own and not is_there else "a complete output"
                state = JobState("Failed", reason=f"it completed without {lacks}", cause=cause)
        ended = self.context.end(current, state)
        self.records.release(job.place, job.name, self.holder)
        return result or AttemptEnd(replace(state, cause=ended.cause or "work"), mine=True)

    def _is_whole(self, stored: StoredObject | None, entry: FileEntry) -> bool:
        """Whether a file is what the job handed over: its content, too, where the store is a folder. S3 guards what it holds itself."""
        if stored is None or stored.size != entry.size:
            return False
        return self.context.store.local_path is None or stored.etag == entry.sha256

    def _result(self, job: Job, record: JobRecord, launched: bool) -> JobResult | None:
        """The result of a completed job; none if its output is missing or not complete."""
        prefix = record.output_prefix
        key = f"{prefix}/{OUTPUT}"
        try:
            output = JobOutput.from_bytes(self.context.store.get(key), self.context.store.uri(key))
        except (MissingKey, UnreadableDocument):
            return None
        found = {stored.key: stored for stored in self.context.store.list(prefix)}
        if not all(self._is_whole(found.get(f"{prefix}/{entry.path}"), entry) for entry in output.files):
            return None
        return JobResult(
            name=job.name,
            attempt=job.attempt,
            launched=launched,
            output_prefix=prefix,
            output=output,
            started_at=record.started_at,
            ended_at=record.ended_at,
            seconds=record.seconds,
            billable_seconds=record.billable_seconds,
            cost_usd=record.cost_usd,
            links=self.backend.links(job),
        )
