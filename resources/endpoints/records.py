"""Records of endpoints in the store, `<EXP>/endpoints/<name>.json`. One that cannot be read hides no other, and nothing is done about its endpoint."""

import time
from collections.abc import Iterator

from docml_contract.base import UnreadableDocument
from docml_contract.manifests import utc_now
from docml_contract.names import EXPERIMENT_NAME
from resources.endpoints.interface import EndpointRecord, EndpointSpec, UnknownEndpoint, record_key
from resources.errors import MissingKey
from resources.store import Store

RENEW_SECONDS = 300.0


class EndpointRecords:
    """All records of a store, and one by its name."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Iterator[EndpointRecord]:
        """Those that can be read."""
        return (record for _, record in self._all() if isinstance(record, EndpointRecord))

    def damaged(self) -> dict[str, str]:
        """Why a record cannot be read, by the name of its endpoint."""
        return {name: str(reason) for name, reason in self._all() if isinstance(reason, UnreadableDocument)}

    def _all(self) -> Iterator[tuple[str, EndpointRecord | UnreadableDocument]]:
        for experiment in self._store.list_folders():
            if not EXPERIMENT_NAME.fullmatch(experiment):
                continue
            for stored in self._store.list(f"{experiment}/endpoints"):
                name = stored.key.removeprefix(f"{experiment}/endpoints/").removesuffix(".json")
                if "/" in name or not stored.key.endswith(".json"):
                    continue
                try:
                    record = self.read(experiment, name)
                except UnreadableDocument as error:
                    yield name, error
                else:
                    if record is not None:  # else it was taken down meanwhile
                        yield name, record

    def read(self, experiment: str, name: str) -> EndpointRecord | None:
        """The record; None if there is none. UnreadableDocument."""
        key = record_key(experiment, name)
        try:
            return EndpointRecord.from_bytes(self._store.get(key), self._store.uri(key))
        except MissingKey:
            return None

    def find(self, name: str) -> EndpointRecord:
        """The record of the endpoint, whatever its experiment. UnknownEndpoint."""
        found = {record.spec.name: record for record in self}
        if name in found:
            return found[name]
        if reason := self.damaged().get(name):
            raise UnknownEndpoint(
                f"the record of endpoint {name} cannot be read ({reason}): mend it; or delete it, and the endpoint is taken down by the sweep"
            )
        raise UnknownEndpoint(f"there is no endpoint {name!r}; known: {', '.join(sorted(found)) or 'none'}")

    def write(self, record: EndpointRecord) -> None:
        """Put it in the place of the one before."""
        self._store.put(record.spec.record_key, record.to_bytes())

    def forget(self, spec: EndpointSpec) -> None:
        """Delete what the endpoint left in the store, the record last."""
        self._store.delete([stored.key for stored in self._store.list(spec.data_key)])
        self._store.delete([spec.record_key])


class RecordRenewal:
    """Keeps the record of an endpoint that is being deployed from looking abandoned, however long that takes."""

    def __init__(self, records: EndpointRecords, record: EndpointRecord) -> None:
        self._records, self._record = records, record
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Write the record again where the last time is a while ago."""
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self._records.write(self._record.model_copy(update={"renewed_at": utc_now()}))
            self._renewed = time.monotonic()
