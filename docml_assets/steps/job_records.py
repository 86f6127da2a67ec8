"""What the store records of a run's jobs."""

import re

from docml_contract.names import RunPlace
from resources.jobs.engine.records import JobRecord
from resources.store.store import Store

RECORD = re.compile(r"[A-Za-z0-9-]+\.json")


def job_records(store: Store, place: RunPlace) -> list[JobRecord]:
    """The records of a run's jobs, oldest first."""
    start = len(place.jobs) + 1
    keys = [stored.key for stored in store.list(place.jobs)]
    names = [key for key in keys if RECORD.fullmatch(key[start:])]  # not the leases, logs and outputs beside them
    records = [JobRecord.from_bytes(store.get(key), store.uri(key)) for key in names]
    return sorted(records, key=lambda record: record.created_at)
