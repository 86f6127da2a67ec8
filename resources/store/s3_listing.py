"""Listing on S3, as Arrow, in several key ranges at once. A listing of obstore stops at keys that it does not represent."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.compute as pc
from obstore.exceptions import BaseError, InvalidPathError

from resources.store.objects import TABLE_SCHEMA, missing_key
from resources.store.s3_client import BucketClients, Outage

# Where key ranges begin: GUIDs vary from their first character on. `~~~` sorts just before the next character and names no
# folder, on which servers that list folders before their content would stumble.
RANGE_STARTS = [f"{before}~~~" for before in "0123456789ABCDEFabcde"]
PAGE = 1000
# Pages read before several ranges are: most listings end before, and a range costs a request even where nothing lies.
FIRST_PAGES = 10


class Listing:
    """All keys that begin with `base` (empty, or ending in a slash), without their first `start` characters."""

    def __init__(self, clients: BucketClients, base: str, start: int, uri: str) -> None:
        self.clients, self.base, self.start, self.uri = clients, base, start, uri

    def table(self, ranges: int) -> pa.Table:
        """TABLE_SCHEMA, sorted by key."""
        batches, offset = self._range(None, None, FIRST_PAGES if ranges > 1 else None)
        if offset is not None:
            seen = offset.removeprefix(self.base)
            starts = [start for start in _spread(RANGE_STARTS, ranges - 1) if start > seen]
            bounds = list(zip([seen, *starts], [*starts, None], strict=True))
            with ThreadPoolExecutor(len(bounds)) as pool:
                for part, _ in pool.map(lambda ends: self._range(*ends), bounds):
                    batches += part
        table = pa.Table.from_batches(batches, schema=TABLE_SCHEMA)
        keys = table["key"]
        if table.num_rows > 1 and not pc.all(pc.less_equal(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
            table = table.sort_by("key")  # not every server lists in byte order
        return table

    def _range(
        self, start: str | None, end: str | None, pages: int | None = None
    ) -> tuple[list[pa.RecordBatch], str | None]:
        """Batches of the keys after `start` and up to `end`, both relative to the base; and the last key if there were more
        than `pages`."""
        batches: list[pa.RecordBatch] = []
        offset = self.base + start if start else None
        last = self.base + end if end else None
        outage = Outage(self.uri, self.clients)
        while True:
            try:
                prefix = self.base.rstrip("/") or None
                listing = obstore.list(self.clients.client, prefix, offset=offset, chunk_size=PAGE, return_arrow=True)
                for chunk in listing:
                    outage.over()
                    batch = pa.record_batch(chunk)
                    offset = batch["path"][-1].as_py()
                    if self._keep(batch["path"], batch["size"], batch["e_tag"], last, batches):
                        return batches, None
                    if pages is not None and len(batches) >= pages and batch.num_rows == PAGE:
                        return batches, offset
                outage.over()
                return batches, None
            except InvalidPathError:
                # A key such as 'a//b' or 'a/../b', which obstore does not represent: read on for a page by other means.
                page, offset = self.clients.page(self.base, offset)
                done = page is not None and self._keep(*page, last, batches)
                if done or offset is None:
                    return batches, None
            except FileNotFoundError:
                raise missing_key(self.uri) from None
            except BaseError as error:
                time.sleep(outage.pause(error))

    def _keep(self, paths: Any, sizes: Any, etags: Any, last: str | None, batches: list[pa.RecordBatch]) -> bool:
        """Append what lies in the range to `batches`; whether the range ends here (all of a page lies behind it)."""
        keys = pc.utf8_slice_codeunits(paths, self.start) if self.start else paths
        columns = [keys, sizes, pc.utf8_trim(etags, characters='"')]
        typed = [pc.cast(column, field.type) for column, field in zip(columns, TABLE_SCHEMA, strict=True)]
        batch = pa.RecordBatch.from_arrays(typed, schema=TABLE_SCHEMA)
        kept = batch if last is None else batch.filter(pc.less_equal(paths, last))
        if kept.num_rows:
            batches.append(kept)
        return batch.num_rows > 0 and kept.num_rows == 0


def _spread(values: list[str], count: int) -> list[str]:
    """`count` of the values, evenly spread; all of them if there are not more."""
    if count >= len(values):
        return values
    return [values[(i + 1) * len(values) // (count + 1)] for i in range(count)]
