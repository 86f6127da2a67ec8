"""The page's text and markup; in a browser it is opened by tests/browser."""

import re

from docml_assets.report.comparison import PreviousRun
from docml_assets.report.evidence import JobLine, Lineage
from tests.docml_assets.report.samples import LABELS, predictions_table, report

EVIL = "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"


def page(*arguments: object, **changes: object) -> str:
    return report(*arguments, **changes).html.decode()  # type: ignore[arg-type]


def test_everything_untrusted_is_escaped() -> None:
    labels = ("letter", EVIL, '"onmouseover="x')
    html = page(
        predictions_table(60, ("a", "b"), labels=labels),
        labels,
        excerpts=lambda _: f"{EVIL}\x00\ud800</blockquote>",
        settings={EVIL: {EVIL: EVIL}},
        lineage=Lineage({EVIL: EVIL}, {EVIL: EVIL}, (JobLine(EVIL, EVIL, EVIL),), claimed=(EVIL, EVIL)),
        experiment="EXP-1",
    )
    assert EVIL not in html
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert 'href="javascript:' not in html
    assert '"onmouseover' not in html


def test_the_page_can_load_nothing() -> None:
    html = page(predictions_table(30))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    assert "script-src" not in policy[1]
    assert not re.search(r"<(script|iframe|object|embed)|@import|url\(", html)
    assert re.findall(r'(?:src|href)="((?!#)[^"]*)"', html) == ["data:,"]


def test_a_thousand_documents_make_a_small_page() -> None:
    html = page(
        predictions_table(1000, ("a", "b"), accuracy=(0.6, 0.5)), excerpts=lambda _: "some words of a text " * 40
    )
    assert len(html.encode()) < 1_000_000


def test_sections() -> None:
    table = predictions_table(100, ("a", "b"))
    html = page(table)
    for heading in (
        "Scores",
        "Comparison",
        "Labels",
        "Confusion",
        "Confident mistakes",
        "Disagreements",
        "Lineage, duration and cost",
    ):
        assert f"<h2>{heading}" in html
    for said in (
        "The text of doc-",
        "2 min 10 s",
        "$0.25",
        "<h3>[hyperparameters]",
        "Claimed on 2026-11-27 12:30 UTC, started by docml run, by somebody on a-machine",
        "No earlier run of this experiment",
    ):
        assert said in html
    alone = page(table.select(["artifact_guid", "label", "a_prediction", "a_probability"]))
    assert "<h2>Comparison" not in alone
    assert "<h2>Disagreements" not in alone


def test_many_labels_leave_the_matrix_to_the_plot() -> None:
    labels = tuple(f"label {index:03d}" for index in range(120))
    html = page(predictions_table(500, labels=labels), labels)
    assert "120 labels are too many for a table here" in html
    assert "Most frequent:" in html


def test_who_changed_what_and_which_labels_are_suspect_stand_where_one_looks() -> None:
    table = predictions_table(60)
    suspects = {
        "documents": 3,
        "share": 0.05,
        "share_upper95": 0.1241,
        "pairs": [{"label": "letter", "likely_label": "memo", "count_all": 3}],
    }
    html = page(
        table,
        previous=[PreviousRun("EXP-1-test", 1, table, LABELS)],
        changed=["[hyperparameters] epochs"],
        baseline=table.rename_columns(["artifact_guid", "label", "prediction", "probability"]),
        prepared={"suspects": suspects},
    )
    assert "changed since run 1: [hyperparameters] epochs" in html
    assert '<a href="#suspects">Suspect labels</a>' in html
    assert (
        "Up to 12.4 % of the labels of this experiment may be wrong: 3 documents in all splits (5.0 %) look so" in html
    )
    assert "docml labels EXP-1-test 2 --suspects" in html
