"""Endpoints that exist exactly once. Names are derived, the record is written before the first call, and every step may be repeated:
whoever was killed does the same again and finds what is there.

An endpoint counts once it is InService with the configuration that was asked for and its answers have been compared with the report's;
until then its record says `asked`. An update that was rolled back is a failure, although the service then says InService.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from docml_contract.manifests import utc_now
from resources.endpoints.interface import (
    BusyEndpoint,
    Endpoint,
    EndpointBackend,
    EndpointError,
    EndpointFailed,
    EndpointRecord,
    EndpointRefused,
    EndpointSpec,
    EndpointState,
    EndpointUnreachable,
    Say,
)
from resources.endpoints.records import EndpointRecords, RecordRenewal
from resources.store import Store

BUSY_SECONDS = 300.0  # a service that does not answer, or an endpoint that is being changed, is waited for
CHANGE_SECONDS = 1_800.0  # for one that is being changed or deleted
ABANDONED_SECONDS = 2 * 3600.0  # whoever deploys renews the record: one that nobody renewed for so long is nobody's
LAG_SECONDS = 60.0  # within which a service shows what it was asked for
T = TypeVar("T")
# Compares the endpoint's answers with the report's; how many documents it compared. Raises what is wrong.
Check = Callable[[Callable[[bytes], bytes]], int]


@dataclass(frozen=True)
class SweptEndpoint:
    """What a sweep did about an endpoint, and why. stands: it was not taken down, but answers as before."""

    name: str
    reason: str
    stands: bool = False

    def __str__(self) -> str:
        return f"endpoint {self.name} {'goes on as before' if self.stands else 'is taken down'}, since {self.reason}"


class Endpoints:
    """See the module's docstring."""

    def __init__(self, store: Store, backend: EndpointBackend) -> None:
        self.backend = backend
        self.records = EndpointRecords(store)

    # -- deploy

    def deploy(
        self, spec: EndpointSpec, *, by: str, check: Check, say: Say, expires_after: timedelta | None = None
    ) -> Endpoint:
        """Bring the endpoint up, or find it so. `check` sees its answers before it counts.

        If that fails, a new endpoint is taken down, and an alias goes back to what it answered with before. EndpointError.
        """
        self.check(spec)
        known = self.records.read(spec.experiment, spec.name)
        self._check_name(spec, known)
        expires = (datetime.now(UTC) + expires_after).isoformat(timespec="seconds") if expires_after else None
        record = EndpointRecord(
            spec=spec,
            where=self.backend.where,
            status="asked",
            by=by,
            asked_at=utc_now(),
            expires_at=expires,
            previous=_standing(known, spec),
        )
        if known is not None and known.spec == spec and known.status == "up":
            state = self._patiently(lambda: self.backend.observe(spec.name))
            if state is not None and state.status == "InService" and state.configuration == spec.configuration:
                say(f"{spec.describe()} is up already, since {known.up_since}")
                self._patiently(lambda: self.backend.finish(spec))
                record = known.model_copy(update={"expires_at": expires or known.expires_at})
                self.records.write(record)
                return self._shown(record, state)
        self.records.write(record)
        renewal = RecordRenewal(self.records, record)

        def invoke(body: bytes) -> bytes:
            renewal.renew()
            return self._patiently(lambda: self.backend.invoke(spec, body))

        try:
            state = self._bring_up(spec, say, renewal.renew)
            compared = check(invoke)
        except EndpointUnreachable:
            raise
        except Exception as error:
            self._take_back(record, error, say)
            raise
        record = record.model_copy(
            update={"status": "up", "up_since": utc_now(), "checked_documents": compared, "previous": None}
        )
        self.records.write(record)
        self._patiently(lambda: self.backend.finish(spec))
        return self._shown(record, state)

    def check(self, spec: EndpointSpec) -> None:
        """EndpointRefused for what would be refused later."""
        self._patiently(lambda: self.backend.check(spec))

    def _bring_up(self, spec: EndpointSpec, say: Say, renew: Callable[[], None] = lambda: None) -> EndpointState:
        """Ask for the endpoint and wait. EndpointFailed if it is not InService with what was asked for."""
        self._patiently(lambda: self.backend.start(spec), CHANGE_SECONDS)
        begun, said = time.monotonic(), ""
        while True:
            renew()
            state = self._patiently(lambda: self.backend.observe(spec.name))
            age = time.monotonic() - begun
            if state is None:
                if age > LAG_SECONDS:
                    raise EndpointFailed(f"{spec.describe()} disappeared while it was being created; deploy it again")
                time.sleep(self.backend.poll_seconds)
                continue
            if state.status == "InService" and (state.configuration == spec.configuration or said == state.status):
                break
            if state.status == "Failed":
                raise EndpointFailed(f"{spec.describe()} failed: {state.reason or 'it gave no reason'}")
            if age > self.backend.patience_seconds:
                raise EndpointFailed(
                    f"{spec.describe()} is still {state.status} after {self.backend.patience_seconds / 60:.0f} minutes, and is given up"
                )
            if state.status != said:
                said = state.status  # InService as it was before is looked at twice: the update may not be seen yet
                say(f"{spec.describe()}: {state.status}")
            time.sleep(self.backend.poll_seconds)
        if state.configuration != spec.configuration:
            raise EndpointFailed(
                f"{spec.describe()} is InService, but answers with another configuration than the one that was asked for: the update was "
                f"rolled back{f' ({state.reason})' if state.reason else ''}"
            )
        return state

    def _take_back(self, record: EndpointRecord, error: Exception, say: Say) -> None:
        """After a failure: a new endpoint goes, an alias answers as before."""
        before = record.previous
        if before is None:
            say(f"taking {record.spec.describe()} down: {error}")
            self.remove(record)
            return
        say(f"{before.describe()} goes on as before: {error}")
        self._bring_up(before, say)
        self.records.write(_settled(record, before))
        self._patiently(lambda: self.backend.finish(before))

    # -- undeploy

    def remove(self, record: EndpointRecord) -> None:
        """Take it down with all that belongs to it; its record goes last."""
        self._check_place(record)
        self.records.write(record.model_copy(update={"status": "leaving"}))
        self._patiently(lambda: self.backend.remove(record.spec.name), CHANGE_SECONDS)
        self.records.forget(record.spec)

    # -- look

    def list_endpoints(self) -> list[Endpoint]:
        """All endpoints, as they stand now. Those of this machine that have died are started again."""
        found = []
        for record in sorted(self.records, key=lambda record: record.spec.name):
            state = self._look_at(record.spec.name) if record.where == self.backend.where else None
            found.append(self._shown(record, state))
        return found

    def _look_at(self, name: str) -> EndpointState | None:
        """What the backend says of it; a failure is a state like others, so that one endpoint does not hide the rest."""
        try:
            return self._patiently(lambda: self.backend.observe(name))
        except EndpointFailed as error:
            return EndpointState("Failed", None, str(error))

    def invoke(self, name: str, body: bytes) -> bytes:
        """The answer to a JSON request."""
        record = self.records.find(name)
        self._check_place(record)
        return self._patiently(lambda: self.backend.invoke(record.spec, body))

    # -- sweep

    def sweep(self, now: datetime | None = None) -> list[SweptEndpoint]:
        """Take down what has expired, what was given up half-way, and what no record knows; a move that was given up is taken back."""
        now = now or datetime.now(UTC)
        found = self._patiently(self.backend.names)  # before the records: these are written first
        known = set(self.records.damaged())  # nobody can tell about these: they are left alone
        swept: list[SweptEndpoint] = []
        for record in list(self.records):
            known.add(record.spec.name)
            if record.where != self.backend.where:
                continue
            reason = _why_to_remove(record, now)
            if reason is not None:
                self.records.write(record.model_copy(update={"status": "leaving"}))
                swept.append(self._sweep_one(record.spec.name, reason, record))
            elif record.previous is not None and _is_abandoned(record, now):
                swept.append(self._settle(record, record.previous))
        swept += [
            self._sweep_one(name, "no record knows it")
            for name in found
            if name not in known and self._patiently(lambda name=name: self.backend.owns(name))  # type: ignore[misc]
        ]
        return swept

    def _sweep_one(self, name: str, reason: str, record: EndpointRecord | None = None) -> SweptEndpoint:
        """One step of a removal: the next sweep goes on. What cannot be removed keeps nothing else from it."""
        try:
            self.backend.remove(name)
            if record is not None:
                self.records.forget(record.spec)
        except BusyEndpoint:
            pass
        except EndpointError as error:
            reason = f"{reason}, but it cannot be taken down: {error}"
        return SweptEndpoint(name, reason)

    def _settle(self, record: EndpointRecord, before: EndpointSpec) -> SweptEndpoint:
        """One step back to what the alias answered with before its move was given up: the next sweep goes on."""
        reason = f"its move to run {record.spec.run} was asked for at {record.asked_at} and never took effect"
        try:
            state = self.backend.observe(before.name)
            if state is not None and state.status == "InService" and state.configuration == before.configuration:
                self.records.write(_settled(record, before))
                self.backend.finish(before)
            else:
                self.backend.start(before)
        except BusyEndpoint:
            pass
        except EndpointError as error:
            reason = f"{reason}, but it cannot be moved back: {error}"
        return SweptEndpoint(before.name, reason, stands=True)

    # -- helpers

    def _shown(self, record: EndpointRecord, state: EndpointState | None) -> Endpoint:
        is_here = record.where == self.backend.where
        return Endpoint(record, state, self.backend.usd_an_hour(record.spec) if is_here else None, is_here)

    def _check_name(self, spec: EndpointSpec, known: EndpointRecord | None) -> None:
        """EndpointRefused if the name is another experiment's, another machine's, or answers in the other mode."""
        for record in self.records:
            if record.spec.name == spec.name and record.spec.experiment != spec.experiment:
                raise EndpointRefused(
                    f"{spec.name} is taken by {record.spec.describe()}; expected a free name: give another --alias"
                )
        if known is None:
            return
        self._check_place(known)
        if known.spec.mode != spec.mode and known.status != "leaving":
            raise EndpointRefused(
                f"{known.spec.describe()} is {known.spec.mode}, and cannot become {spec.mode}: take it down first (docml undeploy "
                f"{spec.name})"
            )

    def _check_place(self, record: EndpointRecord) -> None:
        if record.where != self.backend.where:
            raise EndpointRefused(
                f"{record.spec.describe()} belongs to {record.where}, this is {self.backend.where}: work on it from there, or give "
                "another --alias"
            )

    def _patiently(self, ask: Callable[[], T], seconds: float = BUSY_SECONDS) -> T:
        """Ask again for as long as the other side is busy. EndpointUnreachable."""
        return ask_patiently(ask, self.backend.name, self.backend.poll_seconds, seconds)


def ask_patiently(ask: Callable[[], T], whom: str, pause: float, seconds: float = BUSY_SECONDS) -> T:
    """Ask again for as long as the other side is busy, after longer and longer pauses. EndpointUnreachable."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except BusyEndpoint as error:
            if time.monotonic() > deadline:
                raise EndpointUnreachable(
                    f"{whom} has not answered for {seconds:.0f} s ({error}): what is running goes on; run the same "
                    "command again to continue from there"
                ) from error
            time.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 1.5, 15.0)


def _standing(known: EndpointRecord | None, spec: EndpointSpec) -> EndpointSpec | None:
    """What the name answers with as long as the new configuration does not count."""
    if known is None or known.status == "leaving":
        return None
    standing = known.spec if known.status == "up" else known.previous
    return None if standing == spec else standing


def _why_to_remove(record: EndpointRecord, now: datetime) -> str | None:
    if record.status == "leaving":
        return "its removal was interrupted"
    if record.expires_at and datetime.fromisoformat(record.expires_at) <= now:
        return f"it expired at {record.expires_at}"
    if record.previous is None and _is_abandoned(record, now):
        return f"it was asked for at {record.asked_at} and never went into service"
    return None


def _is_abandoned(record: EndpointRecord, now: datetime) -> bool:
    """Whether nobody brings it up any more."""
    renewed = datetime.fromisoformat(record.renewed_at or record.asked_at)
    return record.status == "asked" and (now - renewed).total_seconds() > ABANDONED_SECONDS


def _settled(record: EndpointRecord, before: EndpointSpec) -> EndpointRecord:
    """The record of an alias that answers as before its move."""
    return record.model_copy(
        update={"spec": before, "status": "up", "up_since": utc_now(), "previous": None, "renewed_at": None}
    )
