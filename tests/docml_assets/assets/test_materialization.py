"""Links that a job may put into the UI."""

import pytest

from docml_assets.assets.materialization import is_link


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("https://wandb.ai/team/project/runs/1", True),
        ("http://tracker.local:8080/run", True),
        ("http://tracker.local/run", False),
        ("http://elsewhere/run", False),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("file:///etc/passwd", False),
        ("https://wandb.ai@elsewhere/", False),
        ("https:///nowhere", False),
        ("https://a b", False),
        ("https://[", False),
        ("None", False),
    ],
)
def test_only_https_and_the_deployments_tracker_become_links(url: str, trusted: bool) -> None:
    assert is_link(url, {"WANDB_BASE_URL": "http://tracker.local:8080"}) is trusted
    assert not is_link(url, {}) or url.startswith("https:")
