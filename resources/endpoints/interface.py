"""What is asked of an endpoint, how it stands, what a backend can do, and the errors; their tree is drawn in `resources/endpoints/__init__.py`."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field

from docml_contract.base import Document, Moment, digest
from docml_contract.names import check_experiment_name
from resources.errors import ResourceError

Mode = Literal["realtime", "async"]
# Creating: on its way, by Create or Update. InService: it answers, with the configuration that the state names.
Status = Literal["Creating", "InService", "Failed", "Deleting"]
HASH_DIGITS = 10
# SageMaker takes 63 characters: what an endpoint is made of has its name, and a hash behind it.
MAX_NAME = 63 - 1 - HASH_DIGITS
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
OF_A_RUN = re.compile(r"\d+-")


class EndpointError(ResourceError):
    """An endpoint could not be made, asked or taken down."""


class EndpointRefused(EndpointError):
    """Nothing was made: what was asked for is wrong, and the message names it."""


class EndpointFailed(EndpointError):
    """It did not come up as asked, or was rolled back."""


class EndpointUnreachable(EndpointError):
    """The service could not be asked for longer than the budget allows. What runs goes on; the same command again attaches to it."""


class UnknownEndpoint(EndpointError):
    """No endpoint of that name is known."""


class BusyEndpoint(Exception):
    """Ask again later: throttled, a server error, a broken connection, or the endpoint is being changed."""


def endpoint_name(run: int, experiment: str, model: str) -> str:
    """`<run>-<experiment>-<model>`, as far as that is a name."""
    return name_of(f"{run}-{experiment}-{model}")


def name_of(words: str) -> str:
    """The words: a slug with a hash where they do not fit the pattern of names."""
    if NAME.fullmatch(words) and len(words) <= MAX_NAME:
        return words
    slug = re.sub(r"[^a-zA-Z0-9]+", "-", words)
    tail = hashlib.sha256(words.encode()).hexdigest()[:8]
    return f"{slug[: MAX_NAME - len(tail) - 1].strip('-')}-{tail}"


def check_alias(alias: str) -> str:
    """The alias, or EndpointRefused with the rule."""
    if not NAME.fullmatch(alias) or len(alias) > MAX_NAME or OF_A_RUN.match(alias):
        raise EndpointRefused(
            f"alias {alias!r}: expected at most {MAX_NAME} letters, digits and '-' that neither begin with a number and '-' (names of "
            "runs do) nor end with '-', such as invoices-live"
        )
    return alias


class EndpointSpec(Document):
    """What an endpoint is: its name, the deployment folder that answers, and on what."""

    name: str = Field(description="of the endpoint; begins with the run's number unless it is an alias")
    alias: bool = Field(False, description="a stable name that is moved from run to run")
    experiment: str
    run: int = Field(ge=1)
    model: str
    mode: Mode = "realtime"
    folder: str = Field(description="store key of the deployment folder")
    manifest_sha256: str = Field(description="of its MANIFEST.json: another folder is not loaded")
    image: str | None = Field(None, description="of the container; none on this machine")
    instance_type: str | None = Field(None, description="none on this machine")

    @property
    def configuration(self) -> str:
        """Hash of all that decides what answers and on what; the names of what an endpoint is made of end with it."""
        return digest(self.model_dump(mode="json"))[:HASH_DIGITS]

    @property
    def record_key(self) -> str:
        """Store key of the endpoint's record."""
        return record_key(self.experiment, self.name)

    @property
    def data_key(self) -> str:
        """Below which requests and answers of an async endpoint lie."""
        return f"{self.experiment}/endpoints/{self.name}/async"

    def describe(self) -> str:
        """The endpoint, as messages name it."""
        return f"endpoint {self.name} ({self.experiment} run {self.run}, {self.model})"


def record_key(experiment: str, name: str) -> str:
    """`<EXP>/endpoints/<name>.json`."""
    return f"{check_experiment_name(experiment)}/endpoints/{name}.json"


class EndpointRecord(Document):
    """<EXP>/endpoints/<name>.json: what was asked of an endpoint and how it stands; written before the first call."""

    schema_version: int = 1
    spec: EndpointSpec
    where: str = Field(description="the machine, or account and region: an endpoint is looked for nowhere else")
    status: Literal["asked", "up", "leaving"]
    by: str = Field(description="who asked")
    asked_at: Moment = Field(description="UTC, ISO 8601")
    renewed_at: Moment | None = Field(None, description="when the process that brings it up last reported")
    up_since: Moment | None = None
    checked_documents: int | None = Field(None, description="test documents whose answers were equal to the report's")
    expires_at: Moment | None = Field(None, description="when the sweep takes it down")
    previous: EndpointSpec | None = Field(
        None, description="what the alias answered with before, until this one goes into service"
    )


@dataclass(frozen=True)
class EndpointState:
    """An endpoint as its backend sees it now."""

    status: Status
    configuration: str | None  # of what answers; None: not known
    reason: str = ""
    url: str = ""


@dataclass(frozen=True)
class Endpoint:
    """An endpoint with its record; `state` None: its backend knows none of that name, or it is not here."""

    record: EndpointRecord
    state: EndpointState | None
    usd_an_hour: float | None  # while nobody asks; None: no price is known
    is_here: bool  # on this machine, or in this account and region; others are not looked at

    @property
    def name(self) -> str:
        """As its specification has it."""
        return self.record.spec.name

    @property
    def is_up(self) -> bool:
        """InService with the configuration that was asked for, and its answers have been compared."""
        return (
            self.record.status == "up"
            and self.state is not None
            and self.state.status == "InService"
            and self.state.configuration == self.record.spec.configuration
        )


Say = Callable[[str], None]


class EndpointBackend(Protocol):
    """SageMaker, or this machine. It neither waits nor tries again: any method may raise BusyEndpoint or EndpointUnreachable."""

    @property
    def name(self) -> str:
        """`local` or `sagemaker`, for people and records."""

    @property
    def poll_seconds(self) -> float:
        """Between two looks at an endpoint that comes up."""

    @property
    def patience_seconds(self) -> float:
        """Within which an endpoint comes up, or has failed."""

    @property
    def where(self) -> str:
        """The machine, or account and region."""

    def check(self, spec: EndpointSpec) -> None:
        """Refuse what would be refused later, before anything is written. EndpointRefused."""

    def requests(self, spec: EndpointSpec) -> Mapping[str, object]:
        """What will be asked, for people: operation -> request."""

    def start(self, spec: EndpointSpec) -> None:
        """Make the endpoint, or change it, or find it as it should be already. May be called again after a crash."""

    def observe(self, name: str) -> EndpointState | None:
        """The endpoint's state; None: there is none of this name. What has died on this machine is started again."""

    def finish(self, spec: EndpointSpec) -> None:
        """It is up: what scaling needs is added, and whatever an earlier configuration of it left is removed. May be called again."""

    def invoke(self, spec: EndpointSpec, body: bytes) -> bytes:
        """The answer to a JSON request. EndpointFailed with the status and the sentence if it is refused."""

    def remove(self, name: str) -> None:
        """Remove the endpoint with all that belongs to it; nothing of that name is no error. May be called again."""

    def names(self) -> list[str]:
        """Of everything that looks like an endpoint of docml's and exists, in whole or in part; whose it is `owns` tells."""

    def owns(self, name: str) -> bool:
        """Whether this deployment's store made it."""

    def usd_an_hour(self, spec: EndpointSpec) -> float | None:
        """What it costs while nobody asks; None if no price is known."""
