"""Outcomes as the UI shows them."""

import dagster as dg
import pyarrow as pa

from docml_assets.assets.metadata import MAX_IMAGE_BYTES, code_block, column_schema, image, location, table
from resources.store import Store


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


def test_a_picture_too_large_for_the_event_log_is_left_out() -> None:
    assert image(b"x" * (MAX_IMAGE_BYTES + 1), "picture") is None


def test_code_is_code_whatever_it_holds() -> None:
    lines = ["x = 1", "```", "![seen](https://evil.example/x.png)", "````"]
    shown = str(code_block("\n".join([*lines, "# \u202e"])).value).splitlines()
    assert shown == ["`" * 7 + "python", *lines, "# \\u202e", "`" * 7]
