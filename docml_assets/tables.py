"""Arrow tables <-> the bytes of parquet files, and what CSV makes of texts."""

import io
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from docml_assets.errors import DocmlError


class DamagedTable(DocmlError):
    """Bytes that should be a parquet file and are none, or not a whole one."""


# A number is none, though it may begin as one does.
_FORMULA = re.compile(r"[=+\-@\t\r](?![\d.,]+\Z)")


def csv_cell(value: Any) -> Any:
    """A value as a spreadsheet may open it: a text that would be a formula there has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as the bytes of a parquet file; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(data: bytes, source: str = "a table of the store") -> pa.Table:
    """The table in the bytes of a parquet file. DamagedTable, which names the `source`, if they are none."""
    try:
        return pq.ParquetFile(pa.BufferReader(data)).read()  # pq.read_table would load pandas
    except (pa.ArrowException, OSError) as error:
        raise DamagedTable(
            f"{source} ({len(data):,} bytes) is not a whole parquet file ({str(error).splitlines()[0]}): something outside docml "
            "changed it; restore it, or remove its folder and execute the run again, which makes it anew"
        ) from error


def schema_of(columns: Mapping[str, str]) -> pa.Schema:
    """The schema of columns whose types the contract names: as Arrow does, with [] for a list of such."""
    fields = []
    for name, kind in columns.items():
        single = pa.type_for_alias(kind.removesuffix("[]"))
        fields.append((name, pa.list_(single) if kind.endswith("[]") else single))
    return pa.schema(fields)
