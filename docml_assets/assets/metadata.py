"""Metadata of materializations: an outcome in the forms that the Dagster UI shows well."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import dagster as dg
import pyarrow as pa

from docml_assets.steps.work import Outcome, Work
from docml_contract.plain_text import plain
from resources.jobs.interface import JobResult
from resources.store import Store

Metadata = dict[str, Any]
# Images travel inside the event log, three times each: larger ones are left to the storage path.
MAX_IMAGE_BYTES = 200_000


def common(work: Work, outcome: Outcome) -> Metadata:
    """What every materialization says: how it came about, where it lies, which jobs worked, what they cost."""
    made_by = f"run {outcome.reused_from}" if outcome.reused_from else None
    cost = [job.cost_usd for job in outcome.jobs if job.cost_usd is not None]
    return {
        "how": outcome.why,
        **({"made of": made_of(outcome.inputs)} if outcome.inputs else {}),
        **({"reused_from": made_by} if made_by else {}),
        **locations(work.store, outcome.folders),
        "jobs launched": sum(job.launched for job in outcome.jobs),
        **({"jobs": jobs_table(outcome.jobs)} if outcome.jobs else {}),
        **{f"{job.name}: {name}": dg.MetadataValue.url(url) for job in outcome.jobs for name, url in job.links.items()},
        **({"cost_usd": float(sum(cost))} if cost else {}),
    }


def made_of(inputs: Mapping[str, str]) -> str:
    """The versions that something was made of, short, for whoever asks why it is stale."""
    return ", ".join(f"{asset} {version[:8]}" for asset, version in sorted(inputs.items()))


def brief(metadata: Metadata) -> Metadata:
    """Numbers, sentences and links alone. Tables, cards and pictures travel in the event log three times each, and of what was
    finished before the materialization that made it shows them.
    """
    short = (bool, int, float, str, dg.PathMetadataValue, dg.UrlMetadataValue)
    return {name: value for name, value in metadata.items() if isinstance(value, short)}


def locations(store: Store, folders: Mapping[str, str]) -> Metadata:
    """Storage path (a folder) or console URL (S3) of every folder."""
    return {f"storage{f' ({name})' if name else ''}": location(store, folder) for name, folder in folders.items()}


def location(store: Store, folder: str) -> dg.MetadataValue:
    """A folder of the store, as a path or as a link into the S3 console."""
    uri = store.uri(folder)
    if store.local_path is not None:
        return dg.MetadataValue.path(uri)
    return dg.MetadataValue.url(_console("buckets", f"{uri}/"))


def file_location(store: Store, key: str) -> dg.MetadataValue:
    """A file of the store, as a path or as a link to its page in the S3 console, from where it opens."""
    uri = store.uri(key)
    return dg.MetadataValue.path(uri) if store.local_path is not None else dg.MetadataValue.url(_console("object", uri))


def _console(page: str, uri: str) -> str:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return f"https://s3.console.aws.amazon.com/s3/{page}/{bucket}?prefix={quote(key)}"


def jobs_table(jobs: Sequence[JobResult]) -> dg.MetadataValue:
    """The jobs that a step launched, attached to or took over: time and cost."""
    return table(
        [
            {
                "job": job.name,
                "attempt": job.attempt,
                "launched": "yes" if job.launched else "no: attached or taken",
                "seconds": round(job.seconds, 1),
                "billable seconds": job.billable_seconds if job.billable_seconds is not None else "",
                "USD": job.cost_usd if job.cost_usd is not None else "",
            }
            for job in jobs
        ]
    )


def table(records: Iterable[Mapping[str, Any]]) -> dg.MetadataValue:
    """A table of rows with the same columns; values are text or numbers."""
    rows = [dg.TableRecord({key: _plain(value) for key, value in record.items()}) for record in records]
    columns = [
        dg.TableColumn(name, "float" if isinstance(value, float) else "int" if isinstance(value, int) else "string")
        for name, value in (rows[0].data.items() if rows else ())
    ]
    return dg.MetadataValue.table(rows, schema=dg.TableSchema(columns))


def _plain(value: Any) -> str | int | float | bool:
    if isinstance(value, float):
        return round(value, 4)  # to be read; scores that are plotted are entries of their own
    return value if isinstance(value, str | int | bool) else "" if value is None else str(value)


def column_schema(schema: pa.Schema, descriptions: Mapping[str, str]) -> dg.TableSchema:
    """An Arrow schema as Dagster shows it. A description for `_prediction` is one of each column whose name ends so."""

    def described(name: str) -> str | None:
        endings = (text for ending, text in descriptions.items() if ending.startswith("_") and name.endswith(ending))
        return descriptions.get(name) or next(endings, None)

    return dg.TableSchema([dg.TableColumn(f.name, str(f.type), description=described(f.name)) for f in schema])


def code_block(source: str) -> dg.MetadataValue:
    """Python code as it is, whatever it holds: no fence within ends the block, nothing in it hides."""
    fence = "`" * (max((len(run) for run in re.findall("`+", source)), default=0) + 3)
    return dg.MetadataValue.md(f"{fence}python\n{plain(source)}\n{fence}")


def image(png: bytes, what: str) -> dg.MetadataValue | None:
    """A picture inside the page, or none if it is too large to travel in the event log."""
    if len(png) > MAX_IMAGE_BYTES:
        return None
    return dg.MetadataValue.md(f"![{what}](data:image/png;base64,{base64.b64encode(png).decode()})")


def stored_image(store: Store, key: str, what: str) -> Metadata:
    """A picture that lies in the store, under its name; nothing if it is missing or too large."""
    found = store.head(key)
    if found is None or found.size > MAX_IMAGE_BYTES:
        return {}
    shown = image(store.get(key), what)
    return {what: shown} if shown is not None else {}


def gallery(store: Store, folder: str, paths: Sequence[str]) -> Metadata:
    """All pictures in one entry, so that one click shows them; those that are too large are left to the storage path."""
    shown = []
    for path in paths:
        title = PurePosixPath(path).stem.replace("_", " ")
        shown += [
            f"**{title}**\n\n{picture.value}" for picture in stored_image(store, f"{folder}/{path}", title).values()
        ]
    return {"plots": dg.MetadataValue.md("\n\n".join(shown))} if shown else {}
