"""Whatever others write, docml answers with a result or an explained error: no traceback, no hang, bounded memory."""

import json
from pathlib import PurePath
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docml_assets.display import TerminalDisplay
from docml_assets.errors import SettingsError
from docml_assets.experiment.functions import check_functions
from docml_assets.experiment.settings.settings import parse_settings
from docml_assets.reconcile.findings import ReconciliationFindings
from docml_assets.reconcile.labels import trusted_rows
from docml_assets.steps.inference import text_of
from docml_contract.base import ContractError
from docml_contract.jobs import JobSpec
from docml_contract.log_lines import parse_event
from docml_contract.manifests import JobOutput, Manifest, ModelContext
from docml_contract.plain_text import is_invisible
from docml_trainer.serving.documents import References, RequestError, read_documents
from resources.queries import RefusedQuery, check_query
from tests.fuzz.bounded import bounded

# Inputs are long on purpose; a failing one is shown however long it is.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
fuzzed = settings.get_profile("docml-fuzz")
# Pieces by which texts get interesting sooner than by chance.
PIECES = [
    "\x1b[2J",
    "\x9b",
    "\u202e",
    "\u200b",
    "\ud800",
    "[/x]",
    "[",
    "]",
    "{",
    "}",
    '"',
    "'",
    "\\",
    "=",
    "->",
    "%",
    "\n",
    "\r",
    "\n  ",
    ",",
    ";",
    "#",
]
text = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=30))).map("".join)
# Some text, over and over.
repeated = st.builds(lambda piece, count: piece * count, text, st.integers(0, 3_000))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
)
KEYS = [
    "RUN_NUM",
    "MODEL_NAMES",
    "LABELS_QUERY",
    "FILES_FROM_PROD",
    "SPLIT",
    "METRIC_DEFINITIONS",
    "IGNORED_LABELS",
    "epochs",
    "learning_rate",
    "mine",
]
lines = st.one_of(
    st.sampled_from(["[settings]", "[hyperparameters]", "[tunable]", "[tunable.a]", "[settings"]),
    st.builds(
        "{} = {}".format, st.sampled_from(KEYS), st.one_of(text, repeated, json_values.map(lambda v: json.dumps(v)))
    ),
    text,
)
settings_texts = st.lists(lines, max_size=30).map(lambda found: "[settings]\n" + "\n".join(found))


@fuzzed
@given(settings_texts)
def test_settings(written: str) -> None:
    bounded(parse_settings, written, PurePath("settings.ini"), expected=(SettingsError,))


@fuzzed
@given(
    st.one_of(
        text,
        st.builds("x = {}{}{}".format, repeated, text, repeated),
        st.builds("def encode_data({}):\n    return {}".format, text, text),
    )
)
def test_functions(written: str) -> None:
    for problem in bounded(check_functions, written, "user_defined_funcs.py"):
        assert str(problem)


words = st.sampled_from(
    [
        "SELECT",
        "FROM",
        "labels",
        "WHERE",
        "(",
        ")",
        "a",
        "1",
        ",",
        "*",
        "/*",
        "*/",
        "--",
        "'",
        '"',
        'U&"',
        "WITH",
        "AS",
        "UNION",
        "::",
        "pg_sleep(9)",
        ";",
    ]
)


@fuzzed
@given(
    st.one_of(text, repeated, st.lists(words).map(" ".join)), st.sampled_from(["postgres", "sqlite", "mysql", "tsql"])
)
def test_queries(query: str, dialect: str) -> None:
    bounded(check_query, query, dialect, expected=(RefusedQuery,))


@fuzzed
@given(
    st.lists(
        st.tuples(*[st.one_of(st.none(), text.map(lambda t: t.encode("utf-8", "replace").decode()))] * 3), max_size=20
    )
)
def test_label_tables(rows: list[tuple[str | None, str | None, str | None]]) -> None:
    columns = list(zip(*rows, strict=True)) if rows else [[], [], []]
    table = pa.table(
        {
            name: pa.array(column, pa.string())
            for name, column in zip(("artifact_guid", "label", "file_hash"), columns, strict=True)
        }
    )
    trusted = bounded(trusted_rows, table, ReconciliationFindings())
    assert isinstance(trusted, pl.DataFrame)
    assert not any(is_invisible(character) for label in trusted["label"] for character in label)


@fuzzed
@given(
    st.one_of(
        text.map(lambda t: t.encode(errors="replace")),
        st.binary(),
        repeated.map(lambda t: t.encode(errors="replace")),
        json_values.map(lambda v: json.dumps(v).encode()),
    )
)
def test_document_texts(content: bytes) -> None:
    assert isinstance(bounded(text_of, content), str)


DISPLAY = TerminalDisplay(verbose=True)


@fuzzed
@given(
    st.one_of(
        text,
        repeated,
        st.builds("DOCML n {}".format, st.one_of(text, json_values.map(json.dumps))),
        st.builds(
            'DOCML n {{"event": "{}", "done": {}, "total": {}, "epoch": {}}}'.format,
            st.sampled_from(["epoch", "progress", "tracking"]),
            *[json_values.map(json.dumps)] * 3,
        ),
    )
)
def test_log_lines(line: str) -> None:
    event = bounded(parse_event, line, "n")
    display = DISPLAY
    with display._console.capture() as capture:
        bounded(display.job_line, "asset", line, line)
        if event is not None and event["event"] == "epoch":
            bounded(display.epoch, "asset", None, event)
        if event is not None and event["event"] == "progress":
            bounded(display.progressed, "asset", str(event.get("what", "")), event["done"], event.get("total"))
    assert "\x1b]" not in capture.get()
    assert "\u202e" not in capture.get()


@fuzzed
@given(
    st.one_of(
        st.binary(),
        text.map(lambda t: t.encode(errors="replace")),
        json_values.map(lambda v: json.dumps(v).encode()),
        st.integers(1, 5_000).map(lambda depth: b"[" * depth),
    )
)
@pytest.mark.parametrize("model", [Manifest, JobOutput, JobSpec])
def test_manifests(model: Any, content: bytes) -> None:
    bounded(model.from_bytes, content, "MANIFEST.json", expected=(ContractError,))


CONTEXT = {"production_files": ("raw_text.json", "page_*.png"), "optional_files": ("page_*.png",)}


@fuzzed
@given(
    st.one_of(
        st.binary(),
        json_values.map(lambda v: json.dumps(v).encode()),
        st.builds(
            lambda guid, files: json.dumps({"artifact_guid": guid, "files": files}).encode(),
            json_values,
            st.dictionaries(
                st.sampled_from(["raw_text.json", "page_1.png", "../x"]),
                st.one_of(json_values, st.builds(lambda v: {"base64": v}, text)),
            ),
        ),
        st.integers(1, 5_000).map(lambda depth: b"[" * depth),
    )
)
def test_http_bodies(body: bytes) -> None:
    context = ModelContext.model_construct(**CONTEXT)
    bounded(read_documents, body, context, References({}), expected=(RequestError,))
