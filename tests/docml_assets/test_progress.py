"""The display that is in place."""

from docml_assets.progress import Silent, display, shown_on


def test_a_display_is_in_place_for_a_while() -> None:
    mine = Silent()
    assert display() is not mine
    with shown_on(mine):
        assert display() is mine
    assert display() is not mine
