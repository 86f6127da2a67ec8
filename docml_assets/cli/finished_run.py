"""A run that is used, not made: its `Work` outside of Dagster, for the commands that put its models to work."""

import getpass
import threading
import uuid
from typing import TYPE_CHECKING, Any

from docml_assets.cli.arguments import Choice
from docml_contract import log_lines
from docml_contract.names import RunPlace

if TYPE_CHECKING:
    from docml_assets.deployment import Deployment
    from docml_assets.display import Display
    from docml_assets.steps.work import Work
    from resources.jobs.interface import Listener


def find_run(deployment: "Deployment", experiment: str, run: Choice, model: str | None) -> tuple[int, str | None]:
    """The run and the model that are meant; ChampionError if the champion is asked for and there is none."""
    if isinstance(run, int):
        return run, model
    from docml_assets.runs.champion import read_champion

    found = read_champion(deployment.store, experiment)
    return found.run, model or found.model


def user_name() -> str:
    """Who works here, for records."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def open_run(deployment: "Deployment", experiment: str, number: int, display: "Display", about: str) -> "Work":
    """The run as its claim froze it; `about` names what is done with it on the display. UnclaimedRun if nobody claimed it."""
    from docml_assets.deployment import work_on
    from docml_assets.steps.snapshot import existing_claim

    claim = existing_claim(deployment.store, RunPlace(experiment, number))
    return work_on(deployment, claim, f"cli-{uuid.uuid4()}", DisplayReporter(display, about))


class DisplayReporter:
    """Reporter and listener of a command: everything goes to its display."""

    def __init__(self, display: "Display", about: str) -> None:
        self._display, self._about = display, about
        self._lock = threading.Lock()
        self.links: dict[str, str] = {}

    def say(self, text: str) -> None:
        """A sentence onto the display."""
        self._display.said(self._about, text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Progress onto the display."""
        self._display.progressed(self._about, what, done, total)

    def listener(self, model: str | None) -> "Listener":
        """This object: all jobs of a command speak to the one display."""
        return self

    def line(self, host: str, text: str) -> None:
        """A log line of a job."""
        with self._lock:
            self._display.job_line(self._about, None, text)

    def status(self, text: str) -> None:
        """Where a job stands."""
        self.say(text)

    def event(self, event: dict[str, Any]) -> None:
        """Progress that a job reports; other events have no place on this display."""
        if event["event"] == log_lines.PROGRESS:
            self.progress(str(event.get("what", "progress")), int(event.get("done", 0)), event.get("total"))
