"""The Dagster home that the command line and the UI share."""

import os
from pathlib import Path

import pytest

from docml_assets.cli.home import prepare_dagster_home


def test_the_default_home_gets_the_settings_and_keeps_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", "")
    home = prepare_dagster_home()
    assert home == tmp_path / ".dagster_home"
    assert os.environ["DAGSTER_HOME"] == str(home)
    settings = home / "dagster.yaml"
    assert "nux" in settings.read_text()
    settings.write_text("telemetry:\n  enabled: false\n")
    assert prepare_dagster_home() == home
    assert settings.read_text().startswith("telemetry")
