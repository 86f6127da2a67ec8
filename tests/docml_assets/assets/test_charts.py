"""Small pictures for metadata."""

from docml_assets.assets.charts import MAX_BARS, label_histogram, stacked_bars
from docml_assets.assets.metadata import MAX_IMAGE_BYTES, image


def test_pictures_are_png_and_small_enough_even_for_many_labels() -> None:
    many = {f"label {number} with a name of some length": number for number in range(3 * MAX_BARS)}
    for png in (
        label_histogram({"a": 1}, "one"),
        label_histogram(many, "many"),
        stacked_bars({"train": many, "test": {"a": 2}}, "splits"),
    ):
        assert png.startswith(b"\x89PNG")
        assert image(png, "picture") is not None


def test_a_picture_too_large_for_the_event_log_is_left_out() -> None:
    assert image(b"x" * (MAX_IMAGE_BYTES + 1), "picture") is None
