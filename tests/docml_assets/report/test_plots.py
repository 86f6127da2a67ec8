"""Plots as PNG."""

import pyarrow as pa

from tests.docml_assets.report.samples import predictions_table, report


def test_every_plot_is_a_png() -> None:
    plots = report(predictions_table(60, ("a", "b"))).plots
    assert set(plots) == {
        "scores.png",
        "per_label.png",
        "calibration.png",
        "confusion_a.png",
        "confusion_b.png",
        "error_by_length.png",
        "learning_curves.png",
    }
    assert all(png.startswith(b"\x89PNG\r\n") for png in plots.values())


def test_without_lengths_and_history() -> None:
    table = predictions_table(30)
    plots = report(table, history={}, documents=pa.table({"artifact_guid": table["artifact_guid"]})).plots
    assert set(plots) == {"scores.png", "per_label.png", "calibration.png", "confusion_tiny.png"}


def test_labels_that_fonts_and_mathematics_stumble_over() -> None:
    labels = ("$x_1^{2$", "契約書", "a\nb", "x" * 200)
    assert len(report(predictions_table(40, labels=labels), labels).plots) == 6
