"""Metadata of materializations: an outcome in the forms that the Dagster UI shows well."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg
import pyarrow as pa

from docml_assets.numbers import duration, number
from docml_assets.steps.work import Outcome, Work
from docml_contract.manifests import Manifest
from docml_contract.names import STORED_FILES
from docml_contract.plain_text import plain
from resources.jobs.interface import JobResult
from resources.store import Store

Metadata = dict[str, Any]
# Images travel inside the event log, three times each: larger ones are left to the storage path.
MAX_IMAGE_BYTES = 200_000
MAX_INLINE_PIXELS = 560
WIDTH_IN_PNG = slice(16, 20)
INLINE_MARKDOWN = 1000  # Dagster shows Markdown of fewer characters in its place, and longer ones after a click


def common(work: Work, outcome: Outcome) -> Metadata:
    """What every materialization says: how it came about, where it lies, which jobs worked, what they cost."""
    made_by = f"run {outcome.reused_from}" if outcome.reused_from else None
    cost = [job.cost_usd for job in outcome.jobs if job.cost_usd is not None]
    return {
        "how": outcome.why,
        **({"made of": made_of(outcome.inputs)} if outcome.inputs else {}),
        **({"reused_from": made_by} if made_by else {}),
        **locations(work.store, outcome.folders),
        "jobs launched": number(sum(job.launched for job in outcome.jobs), 0),
        **({"jobs": describe_jobs(outcome.jobs)} if outcome.jobs else {}),
        **{f"{job.name}: {name}": dg.MetadataValue.url(url) for job in outcome.jobs for name, url in job.links.items()},
        **(plotted(work.place.experiment, {"cost in USD": sum(cost)}) if cost else {}),
    }


def plotted(experiment: str, values: Mapping[str, float]) -> Metadata:
    """Numbers worth a plot over runs. Dagster plots every number over all partitions and over time: the experiment in its name keeps one
    experiment's points from another's, and what is worth no plot is text.
    """
    return {f"{experiment}: {name}": float(value) for name, value in values.items()}


def made_of(inputs: Mapping[str, str]) -> str:
    """The versions that something was made of, short, for whoever asks why it is stale."""
    return ", ".join(f"{asset} {version[:8]}" for asset, version in sorted(inputs.items()))


def brief(metadata: Metadata) -> Metadata:
    """Numbers, sentences and links alone, pictures that are links among them. Tables and cards travel in the event log three times each, and
    of what was finished before the materialization that made it shows them.
    """
    short = (bool, int, float, str, dg.PathMetadataValue, dg.UrlMetadataValue)

    def is_brief(value: Any) -> bool:
        return isinstance(value, short) or (
            isinstance(value, dg.MarkdownMetadataValue) and len(value.value or "") < INLINE_MARKDOWN
        )

    return {name: value for name, value in metadata.items() if is_brief(value)}


def locations(store: Store, folders: Mapping[str, str]) -> Metadata:
    """Storage path (a folder) or console URL (S3) of every folder."""
    return {f"storage{f' ({name})' if name else ''}": location(store, folder) for name, folder in folders.items()}


def location(store: Store, folder: str) -> dg.MetadataValue:
    """A folder of the store, as a path or as a link into the S3 console."""
    uri = store.uri(folder)
    if store.local_path is not None:
        return dg.MetadataValue.path(uri)
    return dg.MetadataValue.url(_console("buckets", f"{uri}/"))


def report_link(store: Store, folder: str, manifest: Manifest, path: str) -> dg.MetadataValue:
    """A page of a finished folder: where `make ui` gives it out, or its place in the S3 console, from where it opens."""
    if store.local_path is not None:
        return dg.MetadataValue.url(address(folder, manifest, path))
    return dg.MetadataValue.url(_console("object", store.uri(f"{folder}/{path}")))


def address(folder: str, manifest: Manifest, path: str) -> str:
    """Where the server of `make ui` gives out a file of a finished folder, of the version that is meant (`docml_assets.webserver`)."""
    return f"{STORED_FILES}/{quote(f'{folder}/{path}')}?version={manifest.data_version[:12]}"


def _console(page: str, uri: str) -> str:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return f"https://s3.console.aws.amazon.com/s3/{page}/{bucket}?prefix={quote(key)}"


def describe_jobs(jobs: Sequence[JobResult]) -> str:
    """The jobs that a step launched, attached to or took over: time and cost. A table of their long names would widen the page."""
    said = []
    for job in jobs:
        parts = ["launched" if job.launched else "attached to, or its result taken", duration(job.seconds)]
        parts += [f"attempt {job.attempt}"] if job.attempt > 1 else []
        parts += [f"{duration(job.billable_seconds)} billed"] if job.billable_seconds is not None else []
        parts += [f"${job.cost_usd:,.2f}"] if job.cost_usd is not None else []
        said.append(f"{job.name}: {', '.join(parts)}")
    return "; ".join(said)


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


def pictures(store: Store, folder: str, manifest: Manifest, shown: Mapping[str, str], *, made: bool) -> Metadata:
    """The pictures that a finished folder has of these (path -> what it shows).

    `make ui` gives out those of a folder, and Dagster shows them in their place: wide ones, which would push the sentences beside them
    out of the window, are links. Those of a bucket travel in the event log of the materialization that made them, in one entry, which
    Dagster shows after a click; too large ones are left to the storage path.
    """
    paths = [entry.path for entry in manifest.files if entry.path in shown]
    if store.local_path is not None:
        return {shown[path]: _linked(store, folder, manifest, path, shown[path]) for path in paths}
    embedded = [
        f"**{shown[path]}**\n\n![{shown[path]}]({_embedded(store.get(f'{folder}/{path}'))})"
        for path in paths
        if made and manifest.file(path).size <= MAX_IMAGE_BYTES
    ]
    if not embedded:
        return {}
    return {"plots" if len(shown) > 1 else shown[paths[0]]: dg.MetadataValue.md("\n\n".join(embedded))}


def _linked(store: Store, folder: str, manifest: Manifest, path: str, what: str) -> dg.MetadataValue:
    place = address(folder, manifest, path)
    head = store.get(f"{folder}/{path}")[: WIDTH_IN_PNG.stop]
    if int.from_bytes(head[WIDTH_IN_PNG]) > MAX_INLINE_PIXELS:
        return dg.MetadataValue.url(place)
    return dg.MetadataValue.md(f"![{what}]({place})")


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
