"""settings.ini: read, checked as a whole, and split into what freezes with a run and what does not.

text --ini.py--> entries with lines --keys.py--> values --rules.py--> Settings, or all problems at once
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from docml_assets.experiment.problems import Problem, SettingsError, nearest, shown
from docml_assets.experiment.settings.hyperparameters import read_hyperparameters, read_tunable
from docml_assets.experiment.settings.ini import Ini, looks_secret, parse_ini
from docml_assets.experiment.settings.keys import Keys, extra_of, operational_keys
from docml_assets.experiment.settings.rules import broken_rules
from docml_contract.hyperparameters import SearchRange, own
from docml_contract.jobs import Compute
from docml_contract.patterns import is_optional

SECTIONS = ("settings", "hyperparameters", "tunable")
OPERATIONAL = operational_keys()
# Keys that came when there were runs already: where they are not used, versions and hashes are those of before.
LATER = frozenset({"files_optional"})
Step = Literal["preparation", "training", "inference"]  # whose jobs have machines; a tuning's trials run on training's
# Stand in for required keys that are wrong, so that the rules between the others can still be checked.
_PLACEHOLDERS: dict[str, Any] = {
    "model_names": ("model",),
    "labels_query": "SELECT artifact_guid, label, file_hash FROM labels",
    "files_from_prod": ("file",),
    "model_input_files": ("file",),
}


class Settings(Keys):
    """A whole settings.ini. Attributes are the keys in lower case (see keys.py for their meaning)."""

    hyperparameters: dict[str, Any] = Field(description="[hyperparameters], with the platform's defaults for its own")
    tunable: dict[str, SearchRange] = Field(description="[tunable]: what a tuning searches")

    @property
    def own_hyperparameters(self) -> dict[str, Any]:
        """The experimenter's own: what encode_data sees, and what enters the version of prepared data."""
        return own(self.hyperparameters)

    @property
    def tuning_constants(self) -> dict[str, Any]:
        """The hyperparameters of a tuning that are not searched: a range replaces the constant of its name."""
        return {key: value for key, value in self.hyperparameters.items() if key not in self.tunable}

    @property
    def optional_input_files(self) -> tuple[str, ...]:
        """Those of MODEL_INPUT_FILES that an artifact may lack."""
        return tuple(entry for entry in self.model_input_files if is_optional(entry, self.files_optional))

    @property
    def is_comparison(self) -> bool:
        return len(self.model_names) > 1

    def compute(self, step: Step, *, image: str | None = None, hosts: int | None = None) -> Compute:
        """The machines of a step's jobs; `hosts` overrides the instance count."""
        training = step == "training"
        return Compute(
            instance_type=getattr(self, f"{step}_instance_type"),
            instance_count=hosts or getattr(self, f"{step}_instance_count"),
            volume_gb=getattr(self, f"{step}_volume_gb"),
            max_runtime_seconds=getattr(self, f"{step}_max_runtime_seconds"),
            use_spot=training and self.training_use_spot,
            max_wait_seconds=self.training_max_wait_seconds if training else None,
            keep_alive_seconds=self.training_keep_alive_seconds if training else None,
            image=image,
            max_cost_usd=self.max_cost_usd,
        )

    def frozen_content(self) -> dict[str, Any]:
        """What freezes with a run, as JSON values; later keys only where they are used."""
        unused = {name for name in LATER if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=set(OPERATIONAL) | unused)

    def operational(self) -> dict[str, Any]:
        """What does not freeze, as JSON values: flags, machines, processes, cost, tracking."""
        return self.model_dump(mode="json", include=set(OPERATIONAL))

    def with_operational(self, other: Mapping[str, Any]) -> Self:
        """These settings with operational ones from elsewhere (the folder, a run's tag); SettingsError if not operational."""
        wrong = sorted(other.keys() - OPERATIONAL)
        if wrong:
            raise _operational_error(", ".join(wrong), "keys that do not freeze", "start the next run")
        try:
            merged = self.model_validate({**self.model_dump(), **other})
        except ValidationError as error:
            first = error.errors()[0]
            found = f"{'.'.join(map(str, first['loc']))} = {shown(first['input'])}"
            raise _operational_error(found, first["msg"], "correct it in settings.ini") from error
        for broken in broken_rules(merged, merged.tunable, bad=()):
            raise _operational_error(broken.found, broken.expected, broken.remedy)
        return merged


def _operational_error(found: str, expected: str, remedy: str) -> SettingsError:
    return SettingsError([Problem("settings that do not freeze with the run", 0, found, expected, remedy)])


def parse_settings(text: str, path: str | PurePath) -> Settings:
    """Read settings.ini. `path` names the file in problems. Raises SettingsError with all problems at once."""
    ini = parse_ini(text, str(path), SECTIONS)
    _require_section(ini)
    secrets = _secrets(ini)
    hyperparameters = read_hyperparameters(ini)
    tunable = read_tunable(ini)
    keys, bad = _read_keys(ini)
    if keys is not None:
        for broken in broken_rules(keys, tunable, bad):
            ini.complain(ini.line(broken.section, broken.key), broken.found, broken.expected, broken.remedy)
    hidden = {problem.line for problem in secrets}  # no other problem may repeat the value
    problems = secrets + [problem for problem in ini.problems if problem.line not in hidden]
    if problems or keys is None:
        raise SettingsError(problems)
    return Settings(**dict(keys), hyperparameters=hyperparameters, tunable=tunable)


def _require_section(ini: Ini) -> None:
    if "settings" not in ini.section_lines:
        ini.complain(1, "no section [settings]", "[settings] with the keys of the experiment", "begin with [settings]")


def _secrets(ini: Ini) -> list[Problem]:
    return [
        Problem(
            ini.path,
            entry.line,
            f"{shown(entry.key)} in [{section}] with {reason}",
            "no secret in settings.ini: it is copied into the store",
            "remove it, revoke it if it was shared, and put it into the deployment's environment",
        )
        for section, entry in ini.all_entries()
        if (reason := looks_secret(entry.key, entry.value))
    ]


def _read_keys(ini: Ini) -> tuple[Keys | None, frozenset[str]]:
    """The [settings] keys and the names of those that are wrong; wrong ones have their defaults or placeholders."""
    raw = {}
    meant = set()  # keys that an unknown one stands for: not missing, but misspelt
    for entry in ini.section("settings").values():
        name = entry.key.lower()
        if entry.key.isupper() and name in Keys.model_fields:
            raw[name] = entry.value
        else:
            meant.add(_unknown_key(ini, entry.key, entry.line))
    try:
        return Keys.model_validate(raw), frozenset()
    except ValidationError as error:
        bad = _complain_of_values(ini, error, meant)
    rest = {name: value for name, value in raw.items() if name not in bad}
    try:
        return Keys.model_validate({**{k: v for k, v in _PLACEHOLDERS.items() if k in bad}, **rest}), frozenset(bad)
    except ValidationError:
        return None, frozenset(bad)


def _unknown_key(ini: Ini, key: str, line: int) -> str | None:
    """Complain of it; returns the key that was probably meant."""
    known = [name.upper() for name in Keys.model_fields]
    guess = nearest(key, known)
    if key.upper() in known:
        remedy = f"keys of [settings] are upper-case: write {key.upper()}"
    elif guess:
        remedy = f"did you mean {guess}?"
    else:
        remedy = "remove it; the experiment's own values belong into [hyperparameters]"
    ini.complain(line, f"the unknown key {shown(key)}", "a key of docs/settings.md", remedy)
    return guess


def _complain_of_values(ini: Ini, error: ValidationError, meant: set[str | None]) -> set[str]:
    """One problem for each wrong key; returns their names."""
    bad: set[str] = set()
    for detail in error.errors():
        name = str(detail["loc"][0])
        if detail["type"] == "default_factory_not_called" or name in bad:
            continue
        bad.add(name)
        key, extra = name.upper(), extra_of(name)
        meaning = Keys.model_fields[name].description
        if detail["type"] == "missing":
            if key in meant:
                continue
            found = f"no {key}"
        else:
            value = "" if detail["input"] == () else detail["input"]
            found = f"{key} = {shown(value) or 'nothing'}" + _reason(detail)
        ini.complain(
            ini.line("settings", key), found, f"{extra['expected']} ({meaning})", f"write {key} = {extra['example']}"
        )
    return bad


def _reason(detail: Any) -> str:
    """Our own validators' reason; pydantic's own texts repeat what `expected` says."""
    reason = detail.get("ctx", {}).get("error") if detail["type"] == "value_error" else None
    return f" ({reason})" if reason else ""
