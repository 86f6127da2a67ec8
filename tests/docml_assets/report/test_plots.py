"""Plots as PNG."""

import warnings

import pyarrow as pa

from docml_assets.assets.metadata import MAX_IMAGE_BYTES, MAX_INLINE_PIXELS, WIDTH_IN_PNG
from docml_assets.report.plots import MAX_BARS, label_histogram, stacked_bars
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
    assert all(int.from_bytes(png[WIDTH_IN_PNG]) <= MAX_INLINE_PIXELS for png in plots.values()), "shown beside text"


def test_without_lengths_and_history() -> None:
    table = predictions_table(30)
    plots = report(table, history={}, documents=pa.table({"artifact_guid": table["artifact_guid"]})).plots
    assert set(plots) == {"scores.png", "per_label.png", "calibration.png", "confusion_tiny.png"}


def test_a_comparison_of_many_models() -> None:
    """Their legends fit: a warning of the plotting library is an error here, as in every test."""
    models = tuple(f"model-{number}" for number in range(14))
    assert len(report(predictions_table(40, models, accuracy=(0.7,) * 14)).plots) == 5 + 14


def test_labels_that_fonts_and_mathematics_stumble_over() -> None:
    """A warning of the plotting library is an error here, as in every test."""
    labels = ("$x_1^{2$", "契約書", "🧾 契約書", "a\nb", "x" * 250, "x" * 249 + "y")
    assert len(report(predictions_table(40, labels=labels), labels).plots) == 6
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        picture = label_histogram(dict.fromkeys(labels, 3), "契約書 🧾")
    assert not said
    assert picture != label_histogram(dict.fromkeys(labels[:-1], 3), "契約書 🧾")  # one bar each, though two look alike


def test_counts_by_label_are_small_pictures_even_for_many_labels() -> None:
    many = {f"label {number} with a name of some length": number for number in range(3 * MAX_BARS)}
    for png in (
        label_histogram({"a": 1}, "one"),
        label_histogram(many, "many"),
        stacked_bars({"train": many, "test": {"a": 2}}, "splits"),
    ):
        assert png.startswith(b"\x89PNG")
        assert len(png) <= MAX_IMAGE_BYTES
        assert int.from_bytes(png[WIDTH_IN_PNG]) <= MAX_INLINE_PIXELS
