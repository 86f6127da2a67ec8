"""Charts are well-formed, whatever they are given."""

from xml.etree import ElementTree

import pytest

from docml_assets.report.svg import Axis, Chart, Series, round_step


def test_a_chart_is_well_formed_and_escaped() -> None:
    line = Series("<b>&", "m0", [(0, 1), (1, 2)], band=[(0, 0.5, 1.5), (1, 1, 3)], dashed=True)
    svg = Chart("x < y", "a & b", [line], diagonal=True).svg()
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "a & b by x < y"
    assert "<b>" not in svg
    assert [circle[0].text for circle in root.iter("circle")] == ["<b>&: 1", "<b>&: 2"]


def test_nothing_to_draw() -> None:
    assert Chart("x", "y", [Series("a", "m0", [])]).svg() == ""


def test_one_point() -> None:
    root = ElementTree.fromstring(Chart("epoch", "loss", [Series("a", "m0", [(1, 0.5)])], whole_x=True).svg())
    assert len(list(root.iter("circle"))) == 1


@pytest.mark.parametrize(
    ("values", "whole"), [([0.0, 1.0], False), ([3.0, 3.0], False), ([1.0, 40.0], True), ([-5.0, 2e6], False)]
)
def test_ticks_lie_on_the_axis(values: list[float], whole: bool) -> None:
    axis = Axis.over(values, None, 0, 100, whole=whole)
    assert 2 <= len(axis.ticks) <= 8
    assert all(axis.low - 1e-6 <= tick <= axis.high + 1e-6 for tick in axis.ticks)
    assert not whole or all(float(tick).is_integer() for tick in axis.ticks)
    assert (axis(axis.low), axis(axis.high)) == (0, 100)


@pytest.mark.parametrize(("rough", "expected"), [(0.13, 0.2), (1, 1), (2.1, 5), (7, 10), (180, 200)])
def test_round_step(rough: float, expected: float) -> None:
    assert round_step(rough) == pytest.approx(expected)
