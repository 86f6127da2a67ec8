"""Arrow tables <-> the bytes of parquet files."""

import io

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as the bytes of a parquet file; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(data: bytes) -> pa.Table:
    """The table in the bytes of a parquet file."""
    return pq.read_table(io.BytesIO(data))
