"""Outcomes as the UI shows them."""

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from docml_assets.assets.metadata import (
    INLINE_MARKDOWN,
    MAX_IMAGE_BYTES,
    MAX_INLINE_PIXELS,
    WIDTH_IN_PNG,
    brief,
    code_block,
    column_schema,
    location,
    pictures,
    report_link,
    table,
)
from docml_contract.manifests import FileEntry, Manifest, utc_now
from resources.store import Store
from tests.servers.s3 import S3Server


def test_tables_keep_numbers_and_show_the_rest_as_text() -> None:
    shown = table([{"label": "a", "documents": 3, "f1": 0.5, "none": None, "list": [1]}])
    assert isinstance(shown, dg.TableMetadataValue)
    assert shown.records[0].data == {"label": "a", "documents": 3, "f1": 0.5, "none": "", "list": "[1]"}
    assert [column.type for column in shown.schema.columns] == ["string", "int", "float", "string", "string"]
    assert isinstance(table([]), dg.TableMetadataValue)


def test_columns_have_types_and_meanings() -> None:
    schema = column_schema(pa.schema([("label", pa.string())]), {"label": "its label"})
    assert (schema.columns[0].type, schema.columns[0].description) == ("string", "its label")


def test_a_folder_is_a_path_and_a_bucket_a_page() -> None:
    assert location(Store.open("/data", environment={}), "EXP-1/run_1").value == "/data/EXP-1/run_1"
    shown = location(Store.open("s3://bucket/base", environment={}), "EXP 1/run_1")
    assert shown.value == "https://s3.console.aws.amazon.com/s3/buckets/bucket?prefix=base/EXP%201/run_1/"


FOLDER = "EXP-1/run_1/inference"
SHOWN = {"a.png": "scores", "b.png": "errors", "c.png": "nobody drew it"}


def manifest_of(**sizes: int) -> Manifest:
    files = tuple(FileEntry(path=f"{name}.png", size=size, sha256="0" * 64) for name, size in sizes.items())
    fields = {"cache_key": "key", "data_version": "0123456789abcdef", "inputs": {}, "code_version": "1"}
    return Manifest(asset="label_counts", experiment="EXP-1", run=1, created_at=utc_now(), files=files, **fields)


@pytest.mark.parametrize("made", [True, False])
def test_pictures_of_a_folder_are_short_links_that_dagster_shows_in_their_place(tmp_path: Path, made: bool) -> None:
    store = Store.open(str(tmp_path), environment={})
    for name, width in (("a", MAX_INLINE_PIXELS), ("b", MAX_INLINE_PIXELS + 1)):
        store.put(f"{FOLDER}/{name}.png", bytes(WIDTH_IN_PNG.start) + width.to_bytes(4))
    shown = pictures(store, FOLDER, manifest_of(a=20, b=20), SHOWN, made=made)
    assert shown.keys() == {"scores", "errors"}
    assert shown["errors"] == dg.MetadataValue.url(f"/stored/{FOLDER}/b.png?version=0123456789ab"), "too wide"
    assert shown["scores"].value == f"![scores](/stored/{FOLDER}/a.png?version=0123456789ab)"
    assert len(shown["scores"].value) < INLINE_MARKDOWN
    assert brief(shown) == shown


def test_pictures_of_a_bucket_travel_in_the_event_log_unless_they_are_too_large(s3_server: S3Server) -> None:
    store = Store.open(s3_server.new_url(), environment=s3_server.environment)
    for name in "ab":
        store.put(f"{FOLDER}/{name}.png", b"png")
    manifest = manifest_of(a=3, b=MAX_IMAGE_BYTES + 1)
    shown = pictures(store, FOLDER, manifest, SHOWN, made=True)
    assert shown["plots"].value == "**scores**\n\n![scores](data:image/png;base64,cG5n)"
    assert pictures(store, FOLDER, manifest, SHOWN, made=False) == {}
    assert pictures(store, FOLDER, manifest, {"c.png": "nobody drew it"}, made=True) == {}


def test_a_report_is_one_click_away() -> None:
    local = report_link(Store.open("/data", environment={}), FOLDER, manifest_of(), "report.html")
    assert isinstance(local, dg.UrlMetadataValue)
    assert local.value == f"/stored/{FOLDER}/report.html?version=0123456789ab"
    remote = report_link(Store.open("s3://bucket/base", environment={}), FOLDER, manifest_of(), "report.html")
    assert remote.value == f"https://s3.console.aws.amazon.com/s3/object/bucket?prefix=base/{FOLDER}/report.html"


def test_code_is_code_whatever_it_holds() -> None:
    lines = ["x = 1", "```", "![seen](https://evil.example/x.png)", "````"]
    shown = str(code_block("\n".join([*lines, "# \u202e"])).value).splitlines()
    assert shown == ["`" * 7 + "python", *lines, "# \\u202e", "`" * 7]
