"""Fixtures of the Dagster side."""

from pathlib import Path

import pytest

from tests.docml_assets.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two dozen documents with two labels, an empty store, no experiment yet."""
    return World(tmp_path)
