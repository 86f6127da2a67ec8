"""The versions of what production holds: the label table that a query yields, and the files of an experiment."""

import hashlib
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.experiment.settings.settings import Settings
from docml_contract.file_names import matches
from docml_contract.names import PRODUCTION_FILES, PRODUCTION_LABELS
from resources.labels import LabelSource
from resources.store import Store

# Key ranges that are listed at once.
SHARDS = 16


def versions(settings: Settings, labels: LabelSource, production: Store) -> dict[str, str]:
    """The data versions of both external assets as an experiment sees them."""
    return {
        PRODUCTION_LABELS: labels.fingerprint(settings.labels_query),
        PRODUCTION_FILES: files_version(production, settings.files_from_prod),
    }


def describe_change(assets: Iterable[str]) -> str:
    """What is said of a run that was made of other versions of these assets."""
    return f"{' and '.join(assets)} changed since this run was made; start the next run to use what is new"


def files_version(production: Store, names: Sequence[str]) -> str:
    """sha256 over key, size and etag of every production file that `names` (names and patterns) mean, in the order of their keys."""
    table = production.list_table(shards=SHARDS)
    table = table.cast(pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())]))
    file_names = pc.replace_substring_regex(table["key"], pattern="^.*/", replacement="")
    wanted = [name for name in file_names.unique().to_pylist() if any(matches(name, entry) for entry in names)]
    table = table.filter(pc.is_in(file_names, value_set=pa.array(wanted, pa.string()))).sort_by("key")
    rows = pc.binary_join_element_wise(table["key"], table["size"].cast(pa.string()), table["etag"], "\t")
    digest = hashlib.sha256()
    for chunk in rows.chunks:
        digest.update("".join(f"{row}\n" for row in chunk.to_pylist()).encode())
    return digest.hexdigest()
