"""Runs come into being by a claim and are frozen by it.

`run_<N>/experiment/CLAIM.json` is put only if absent, so that of several processes that want one number one gets it. It holds
everything a run needs of its experiment folder; the readable files beside it are written from it, also after a crash.
"""

import ast
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import Field

from docml_assets.errors import DocmlError, SettingsError
from docml_assets.experiment.folder import SETTINGS, ExperimentFolder
from docml_assets.experiment.settings.ini import DIALECT
from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_assets.experiment.use_case import UseCase
from docml_assets.tables import DamagedTable
from docml_contract.base import Document, IncompleteArtifact, Moment, UnreadableDocument, digest
from docml_contract.manifests import CODE_VERSIONS, Manifest, cache_key, snapshot_version, utc_now
from docml_contract.names import USER_FUNCTIONS, RunPlace, check_experiment_name
from resources.errors import MissingKey, StoreError
from resources.store import Store
from resources.store.manifests import publish_bytes

ASSET = "experiment_snapshot"
RESOLVED_SETTINGS = "settings.json"
# Metadata of experiment_snapshot: what later steps compare the claim with.
CLAIM_DIGEST = "claim sha256"
Read = TypeVar("Read")
_RUN_FOLDER = re.compile(r"run_([1-9][0-9]{0,5})")


class RunClaimed(DocmlError):
    """The run number belongs to another request."""


class RunChanged(DocmlError):
    """A claimed run's folder has changed since."""


class ClaimSwapped(DocmlError):
    """A run's claim was changed in the store."""


class Claim(Document):
    """A run, as it was claimed."""

    experiment: str
    run: int = Field(ge=1)
    settings_text: str = Field(description="settings.ini")
    functions_source: str = Field(description="user_defined_funcs.py")
    use_case: UseCase | None = Field(None, description="what USE_CASE names, where that is not classification")
    dialect: int = Field(1, ge=1, description="of settings_text: how its values are read (experiment/settings/ini.py)")
    trigger: dict[str, Any] = Field(description="what started the run, for people")
    request_id: str = Field(
        min_length=1, description="of the claiming request; tells whether one whose response was lost succeeded"
    )
    created_at: Moment = Field(description="UTC, ISO 8601")
    parent_run: int | None = Field(
        None, description="the run whose settings and functions were taken, if not the folder's"
    )

    @property
    def settings(self) -> Settings:
        """The frozen settings, under this run's number."""
        path = PurePath(f"{self.experiment}/run_{self.run}/experiment/{SETTINGS}")
        return parse_settings(self.settings_text, path, self.dialect).with_operational({"run_num": self.run})

    @property
    def place(self) -> RunPlace:
        """Where the run lies in the store."""
        return RunPlace(self.experiment, self.run)

    @property
    def digest(self) -> str:
        """sha256 of what the run is made of. It stands in Dagster's event log, too, which no job can write."""
        use_case = [self.use_case.model_dump()] if self.use_case else []
        return digest([self.experiment, self.run, self.dialect, self.settings_text, self.functions_source, *use_case])

    @property
    def files(self) -> dict[str, bytes]:
        """What was taken from the experiment folder, by file name."""
        files = {SETTINGS: self.settings_text.encode(), USER_FUNCTIONS: self.functions_source.encode()}
        return files | (self.use_case.files if self.use_case else {})

    def check_frozen(self, manifest: Manifest | None, recorded: str | None) -> None:
        """ClaimSwapped if the claim is not the one that the run was made with.

        manifest: the snapshot's, if it has been written. recorded: the digest in Dagster's event log, if there is one.
        """
        claimed = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        frozen = (
            {entry.path: entry.sha256 for entry in manifest.files if entry.path != RESOLVED_SETTINGS}
            if manifest
            else claimed
        )
        differing = sorted(name for name in {**claimed, **frozen} if claimed.get(name) != frozen.get(name))
        if differing or recorded not in (None, self.digest):
            than = f"in the snapshot's manifest: {', '.join(differing)}" if differing else "in Dagster's event log"
            raise ClaimSwapped(
                f"{self.place.claim} does not hold what run {self.run} was claimed with (another hash {than}); expected the claim as it "
                "was written: somebody changed the store. Find out who, restore the object, or take the next run number"
            )


DAMAGE = (
    UnreadableDocument,
    IncompleteArtifact,
    MissingKey,
    SettingsError,
    DamagedTable,
)  # what reading a file raises that somebody cut, changed or removed


def read_or_note(read: Callable[[], Read], damage: list[str]) -> Read | None:
    """What `read` gives; where a file is damaged None, and what it is in `damage`. A store that does not answer is an error still."""
    try:
        return read()
    except DAMAGE as error:
        damage.append(str(error).splitlines()[0])
        return None


def run_folders(store: Store, experiment: str) -> list[int]:
    """Numbers of the run folders, ascending."""
    names = store.list_folders(check_experiment_name(experiment))
    return sorted(int(match[1]) for name in names if (match := _RUN_FOLDER.fullmatch(name)))


def claimed_runs(store: Store, experiment: str) -> list[int]:
    """Numbers of the claimed runs, ascending."""
    return [number for number in run_folders(store, experiment) if store.exists(RunPlace(experiment, number).claim)]


def next_run(store: Store, experiment: str) -> int:
    """One more than the highest number in use (gaps stay gaps, so that a later run has a higher number)."""
    return max(run_folders(store, experiment), default=0) + 1


Content = ExperimentFolder | Claim  # where the settings and functions of a new run come from


def claim_run(store: Store, content: Content, number: int, *, trigger: Mapping[str, Any], request_id: str) -> Claim:
    """Claim run `number` with the content of a folder (or of an earlier claim).

    One of several racing processes succeeds; the others get RunClaimed. Whoever asks again with the same `request_id`, because the
    answer was lost or after a crash, gets the claim that it made. Raises SettingsError, and claims nothing, if settings are wrong.
    """
    claim = _draft(content, number, trigger, request_id)
    key = claim.place.claim
    try:
        if store.put_if_absent(key, claim.to_bytes()):
            return claim
    except StoreError:
        ours = read_claim(store, claim.experiment, number)
        if ours is not None and ours.request_id == request_id:
            return ours
        raise
    winner = read_claim(store, claim.experiment, number)
    if winner is not None and winner.request_id == request_id:
        return winner
    when = f" on {winner.created_at}" if winner else ""
    raise RunClaimed(
        f"run {number} of {claim.experiment} was claimed{when} by another request; expected a free number: "
        f"take the next one with `docml run {claim.experiment} --next`, or continue it with --run {number}"
    )


def _draft(content: Content, number: int, trigger: Mapping[str, Any], request_id: str) -> Claim:
    parent = None if isinstance(content, ExperimentFolder) else content.run
    _ = content.settings  # raises on mistakes: a run that cannot work must not take a number
    return Claim(
        experiment=content.name if isinstance(content, ExperimentFolder) else content.experiment,
        run=number,
        settings_text=content.settings_text,
        functions_source=content.functions_source,
        use_case=content.use_case,
        dialect=DIALECT if isinstance(content, ExperimentFolder) else content.dialect,
        trigger=dict(trigger),
        request_id=request_id,
        created_at=utc_now(),
        parent_run=parent,
    )


def claim_next(store: Store, content: Content, *, trigger: Mapping[str, Any], request_id: str) -> Claim:
    """Claim the next free number; race-safe. A claim that `request_id` made before is returned instead of a second one."""
    experiment = content.name if isinstance(content, ExperimentFolder) else content.experiment
    for number in reversed(claimed_runs(store, experiment)):
        earlier = read_or_note(partial(read_claim, store, experiment, number), [])  # a damaged one is another's
        if earlier is not None and earlier.request_id == request_id:
            return earlier
    number = next_run(store, experiment)
    while True:
        try:
            return claim_run(store, content, number, trigger=trigger, request_id=request_id)
        except RunClaimed:
            number += 1


def claim_or_continue(
    store: Store, folder: ExperimentFolder, number: int, *, trigger: Mapping[str, Any], request_id: str
) -> Claim:
    """What `docml run` does with RUN_NUM: claim it, or continue it if the folder still says what the run froze.

    Raises RunChanged, which names the keys, if it does not.
    """
    claim = read_claim(store, folder.name, number)
    if claim is None:
        try:
            return claim_run(store, folder, number, trigger=trigger, request_id=request_id)
        except RunClaimed:
            claim = read_claim(store, folder.name, number)
            if claim is None:
                raise
    changed = changed_keys(claim, folder)
    if changed:
        raise RunChanged(
            f"{describe_changes(claim, changed, next_run(store, folder.name))}; or continue run {number} as it was: --run {number}"
        )
    return claim


def read_claim(store: Store, experiment: str, number: int) -> Claim | None:
    """The claim of a run, or None if nobody claimed it. Raises UnreadableDocument, also for one of another run: it would be worked on there."""
    key = RunPlace(experiment, number).claim
    try:
        claim = Claim.from_bytes(store.get(key), store.uri(key))
    except MissingKey:
        return None
    except UnreadableDocument as error:
        raise UnreadableDocument(f"{error}. {_remedy(experiment)}") from error
    if (claim.experiment, claim.run) != (experiment, number):
        raise UnreadableDocument(
            f"{store.uri(key)} is the claim of {claim.experiment} run {claim.run}; expected that of {experiment} run {number}, as it was "
            f"written. {_remedy(experiment)}"
        )
    return claim


def _remedy(experiment: str) -> str:
    return f"Restore the file, or take the next run number: docml run {experiment} --next"


def changed_keys(claim: Claim, folder: Claim | ExperimentFolder) -> list[str]:
    """What the folder (or a later claim) says otherwise than the claim, of all that freezes. Comments and formatting do not count."""
    frozen, now = claim.settings.frozen_content(), folder.settings.frozen_content()
    keys = [key for key in {**frozen, **now} if key not in (*_SECTIONS, *_MODEL_SECTIONS)]
    changed = [key.upper() for key in keys if frozen.get(key) != now.get(key)]
    old, new = _sections(frozen), _sections(now)
    for section in sorted(old.keys() | new.keys()):
        before, after = old.get(section, {}), new.get(section, {})
        changed += [
            f"[{section}] {key}" for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
        ]
    old_code, new_code = claim.functions_source, folder.functions_source
    if old_code != new_code and _code(old_code) != _code(new_code):
        changed.append(USER_FUNCTIONS)
    if "USE_CASE" not in changed and _use_case_digests(claim) != _use_case_digests(folder):
        changed.append(f"the use case {claim.settings.use_case}")
    return changed


def _use_case_digests(content: Claim | ExperimentFolder) -> tuple[str | None, ...]:
    found = content.use_case
    return (found.reconciling_digest, found.combining_digest) if found else ()


_SECTIONS = ("hyperparameters", "tunable")
_MODEL_SECTIONS = {"model_hyperparameters": "hyperparameters", "model_tunable": "tunable"}


def _sections(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Section -> key -> value of what froze beside [settings]."""
    models = {
        f"{section}.{model}": values
        for key, section in _MODEL_SECTIONS.items()
        for model, values in content.get(key, {}).items()
    }
    return {section: content[section] for section in _SECTIONS} | models


def describe_changes(claim: Claim, changed: Sequence[str], free: int) -> str:
    """What is said of a run whose folder differs from its claim in `changed`; `free`: the next free number."""
    return (
        f"run {claim.run} of {claim.experiment} was claimed on {claim.created_at} and keeps its settings; its folder has changed "
        f"since: {', '.join(changed)}. To use what is new take run {free}: docml run {claim.experiment} --next, or RUN_NUM = {free}"
    )


def describe_trigger(trigger: Mapping[str, Any]) -> str:
    """What started a run, in words."""
    by = f"{trigger['user']} on {trigger['host']}" if "user" in trigger and "host" in trigger else ""
    words = {"cli": f"docml run, by {by}" if by else "docml run", "ui": "somebody in the UI"}
    kind = str(trigger.get("kind", "not known"))
    changed = f": {', '.join(trigger['changed'])} changed" if trigger.get("changed") else ""
    return words.get(kind, kind) + changed


def _code(source: str) -> str:
    try:
        return ast.dump(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source


def write_snapshot(store: Store, claim: Claim) -> Manifest:
    """Write settings.ini, settings.json (resolved) and user_defined_funcs.py from the claim, then their manifest.

    Does nothing, and returns the manifest, if that has been done.
    """
    settings = claim.settings
    content, sha256 = settings.frozen_content(), hashlib.sha256(claim.functions_source.encode()).hexdigest()
    if claim.use_case is not None:
        content["use_case"] = claim.use_case.describe()
    return publish_bytes(
        store,
        claim.place.snapshot,
        {
            **claim.files,
            RESOLVED_SETTINGS: (settings.model_dump_json(indent=2) + "\n").encode(),
        },
        asset=ASSET,
        experiment=claim.experiment,
        run=claim.run,
        cache_key=cache_key(ASSET, settings=content, functions=sha256),
        data_version=snapshot_version(content, sha256),
        inputs={},
        code_version=CODE_VERSIONS[ASSET],
    )
