"""Listing on S3, as Arrow, in several key ranges at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.compute as pc
from obstore.exceptions import InvalidPathError
from obstore.store import S3Store

from resources.store.s3_errors import StoreErrors
from resources.store.store import TABLE_SCHEMA

# Where key ranges begin: GUIDs vary from their first character on. `~~~` sorts just before the next character and names no
# folder, on which servers that list folders before their content would stumble.
RANGE_STARTS = [f"{before}~~~" for before in "0123456789ABCDEFabcde"]
PAGE = 1000
# Pages read before several ranges are: most listings end before, and a range costs a request even where nothing lies.
FIRST_PAGES = 10
# Columns of one page (paths, sizes, etags; None: nothing found), and where to go on (None: nowhere).
Page = tuple[tuple[Any, Any, Any] | None, str | None]


class Listing:
    """All keys that begin with `base` (empty, or ending in a slash), without their first `start` characters.

    page: reads one page after a key by other means, for keys that obstore does not represent.
    """

    def __init__(
        self, client: S3Store, base: str, start: int, uri: str, page: Callable[[str, str | None], Page]
    ) -> None:
        self.client, self.base, self.start, self.uri, self.page = client, base, start, uri, page

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
        while True:
            try:
                with StoreErrors(self.uri):
                    prefix = self.base.rstrip("/") or None
                    for chunk in obstore.list(self.client, prefix, offset=offset, chunk_size=PAGE, return_arrow=True):
                        batch = pa.record_batch(chunk)
                        offset = batch["path"][-1].as_py()
                        if self._keep(batch["path"], batch["size"], batch["e_tag"], last, batches):
                            return batches, None
                        if pages is not None and len(batches) >= pages and batch.num_rows == PAGE:
                            return batches, offset
                return batches, None
            except InvalidPathError:
                # A key such as 'a//b' or 'a/../b', which obstore does not represent: read on for a page by other means.
                page, offset = self.page(self.base, offset)
                done = page is not None and self._keep(*page, last, batches)
                if done or offset is None:
                    return batches, None

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
