"""What a job may put into the UI: links, and lines of its log."""

import dagster as dg
import pytest

from docml_assets.assets.materialization import DagsterReporter, is_link
from docml_assets.display import Display, shown_on


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


def test_a_job_that_prints_without_end_is_shown_in_part_which_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shown(Display):
        def __init__(self) -> None:
            self.lines, self.sentences = 0, list[str]()

        def job_line(self, asset: str, model: str | None, text: str) -> None:
            self.lines += 1

        def said(self, asset: str, text: str) -> None:
            self.sentences.append(text)

    now = 0.0
    monkeypatch.setattr("docml_assets.assets.materialization.time.monotonic", lambda: now)
    monkeypatch.setattr("docml_assets.assets.materialization.SHOWN_LINES", 20)
    listener = DagsterReporter(dg.build_asset_context(), "encoded_splits").listener("bow")
    shown = Shown()
    with shown_on(shown):
        for _ in range(100_000):
            listener.line("algo-1", "hello world")
        assert shown.lines == 20
        now = 1.0
        for _ in range(100_000):
            listener.line("algo-1", "hello world")
        assert shown.lines == 30
    assert len(shown.sentences) == 1
    assert "[bow] the job prints more lines than can be shown here" in shown.sentences[0]
