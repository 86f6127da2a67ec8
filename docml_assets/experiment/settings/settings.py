"""settings.ini: read, checked as a whole, and split into what freezes with a run and what does not.

text --ini.py--> entries with lines --key_reader.py--> values --rules.py--> Settings, or all problems at once
"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from docml_assets.errors import Problem, SettingsError, nearest, shown
from docml_assets.experiment.settings.hyperparameters import (
    HYPERPARAMETERS,
    SETTINGS_KEYS,
    TUNABLE,
    read_constants,
    read_hyperparameters,
    read_ranges,
)
from docml_assets.experiment.settings.ini import DIALECT, Ini, looks_secret, parse_ini
from docml_assets.experiment.settings.key_reader import QUERIES, operational_keys, read_keys
from docml_assets.experiment.settings.keys import Keys
from docml_assets.experiment.settings.rules import Broken, broken_rules
from docml_assets.experiment.settings.values import find_slip
from docml_assets.numbers import setting
from docml_contract.file_names import is_optional
from docml_contract.hyperparameters import KNOWN, Choice, Interval, SearchRange, own
from docml_contract.jobs import Compute

SECTIONS = ("settings", HYPERPARAMETERS, TUNABLE)
OPERATIONAL = operational_keys()
# Keys that came when there were runs already: where they are not used, versions and hashes are those of before.
LATER = frozenset(
    {
        *("files_optional", "model_hyperparameters", "model_tunable", "baseline", "auto_accept_precision"),
        *("predict_query", "use_case", "seeds", "learning_curve", "inference_speedup"),
    }
)
Step = Literal["preparation", "training", "inference"]  # whose jobs have machines; a tuning's trials run on training's


class Settings(Keys):
    """A whole settings.ini. Attributes are the keys in lower case (see keys.py for their meaning)."""

    hyperparameters: dict[str, Any] = Field(description="[hyperparameters], with the platform's defaults for its own")
    tunable: dict[str, SearchRange] = Field(description="[tunable]: what a tuning searches")
    model_hyperparameters: dict[str, dict[str, Any]] = Field(
        {}, description="[hyperparameters.<model>]: model -> its own"
    )
    model_tunable: dict[str, dict[str, SearchRange]] = Field({}, description="[tunable.<model>]: model -> its own")

    @property
    def own_hyperparameters(self) -> dict[str, Any]:
        """The experimenter's own: what encode_data sees, and what enters the version of prepared data."""
        return own(self.hyperparameters)

    @property
    def own_model_hyperparameters(self) -> dict[str, dict[str, Any]]:
        """The same for the models that have their own values, of these only."""
        found = {model: own(values) for model, values in self.model_hyperparameters.items()}
        return {model: values for model, values in found.items() if values}

    def hyperparameters_of(self, model: str) -> dict[str, Any]:
        """The constants of one model's training."""
        return {**self.hyperparameters, **self.model_hyperparameters.get(model, {})}

    def ranges_of(self, model: str) -> dict[str, SearchRange]:
        """What one model's tuning searches. A constant of the model's own is not searched for it, unless a range of its own is."""
        ranges, mine = self.tunable, self.model_tunable.get(model, {})
        constants = self.model_hyperparameters.get(model, {})
        return {**{key: found for key, found in ranges.items() if key not in constants}, **mine}

    @property
    def searches(self) -> list[dict[str, SearchRange]]:
        """What each model's tuning searches."""
        return [self.ranges_of(model) for model in self.model_names]

    def tuning_constants_of(self, model: str) -> dict[str, Any]:
        """The hyperparameters of one model's tuning that are not searched: a range replaces the constant of its name."""
        ranges = self.ranges_of(model)
        return {key: value for key, value in self.hyperparameters_of(model).items() if key not in ranges}

    @property
    def optional_input_files(self) -> tuple[str, ...]:
        """Those of MODEL_INPUT_FILES that an artifact may lack."""
        return tuple(entry for entry in self.model_input_files if is_optional(entry, self.files_optional))

    @property
    def is_comparison(self) -> bool:
        """Whether the run trains several models on the same data."""
        return len(self.model_names) > 1

    @property
    def infers_in_training(self) -> bool:
        """Whether the jobs of trainings predict the test split."""
        return self.inference_in_training and self.training_instance_count == 1

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
        """What freezes with a run, as JSON values; later keys only where they differ from their default."""
        fields = type(self).model_fields
        unused = {name for name in LATER if getattr(self, name) == fields[name].get_default(call_default_factory=True)}
        return self.model_dump(mode="json", exclude=set(OPERATIONAL) | unused)

    def as_written(self) -> dict[str, dict[str, str]]:
        """Section -> key -> value, as settings.ini would have them; later keys only where they differ from their default."""
        content = {**self.frozen_content(), **self.operational()}
        keys = {key.upper(): value for key, value in sorted(content.items()) if key in Keys.model_fields}
        sections: dict[str, Mapping[str, Any]] = {"settings": keys, HYPERPARAMETERS: self.hyperparameters}
        sections |= {TUNABLE: self.tunable} if self.tunable else {}
        sections |= {f"{HYPERPARAMETERS}.{model}": found for model, found in self.model_hyperparameters.items()}
        sections |= {f"{TUNABLE}.{model}": found for model, found in self.model_tunable.items()}
        return {name: {key: _written(value) for key, value in found.items()} for name, found in sections.items()}

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
        for broken in broken_rules(merged, merged.searches, bad=()):
            raise _operational_error(broken.found, broken.expected, broken.remedy)
        return merged


def _written(value: Any) -> str:
    match value:
        case Interval():
            return f"{value.low:g} -> {value.high:g}{' log' if value.log else ''}"
        case Choice():
            return setting(value.values)
    return setting(value)


def _operational_error(found: str, expected: str, remedy: str) -> SettingsError:
    return SettingsError([Problem("settings that do not freeze with the run", 0, found, expected, remedy)])


def parse_settings(text: str, path: str | PurePath, dialect: int = DIALECT) -> Settings:
    """Read settings.ini. `path` names the file in problems. Raises SettingsError with all problems at once.

    dialect: how values were written when a run was claimed (see ini.py).
    """
    ini = parse_ini(text, str(path), SECTIONS, dialect)
    _require_section(ini)
    secrets = _secrets(ini)
    slips = _drop_slips(ini)
    hyperparameters, tunable = read_hyperparameters(ini), read_ranges(ini)
    keys, bad = read_keys(ini, slips)
    by_model = _read_models(ini, keys.model_names if keys and "model_names" not in bad else None)
    settings = Settings(**dict(keys), hyperparameters=hyperparameters, tunable=tunable, **by_model) if keys else None
    for broken in broken_rules(settings, settings.searches, bad) if settings else ():
        ini.complain(_line(ini, broken), broken.found, broken.expected, broken.remedy)
    hidden = {problem.line for problem in secrets}  # no other problem may repeat the value
    problems = secrets + [problem for problem in ini.problems if problem.line not in hidden]
    if problems or settings is None:
        raise SettingsError(problems)
    return settings


def _line(ini: Ini, broken: Broken) -> int:
    """Of the key of a broken rule; an interval may stand in the section of one model."""
    for section, entries in ini.entries.items():
        if section.startswith(f"{broken.section}.") and broken.key in entries and "->" in entries[broken.key].value:
            return entries[broken.key].line
    return ini.line(broken.section, broken.key)


def _drop_slips(ini: Ini) -> frozenset[str]:
    """Complain of values that are not written as they should be, and drop them; returns the keys of [settings] among them."""
    if ini.dialect == 1:
        return frozenset()
    found = set()
    for section, entry in [*ini.all_entries()]:
        names = SETTINGS_KEYS if section == "settings" else KNOWN
        slip = find_slip(entry.value, names, sql=entry.key.lower() in QUERIES)
        if slip is None and section != "settings" and (line := _INNER_ENTRY.search(entry.value)):
            slip = (
                f"{line[1]} inside of it",
                "one key per line, not indented",
                "give it a line of its own, or put a text in quotes",
            )
        if slip:
            ini.complain(entry.line, f"{shown(entry.key)} = {shown(entry.value)} ({slip[0]})", slip[1], slip[2])
            del ini.entries[section][entry.key]
            found |= {entry.key.lower()} if section == "settings" else set()
    return frozenset(found)


_INNER_ENTRY = re.compile(r"^([A-Za-z_][\w.-]*)\s*=(?!=)", re.MULTILINE)


def _read_models(ini: Ini, models: tuple[str, ...] | None) -> dict[str, dict[str, Any]]:
    """What [hyperparameters.<model>] and [tunable.<model>] say, by model. models: MODEL_NAMES, where they are known."""
    values: dict[str, dict[str, Any]] = {"model_hyperparameters": {}, "model_tunable": {}}
    for section, line in ini.section_lines.items():
        base, dot, model = section.partition(".")
        if not dot:
            continue
        if models is not None and model not in models:
            guess = nearest(model, models)
            remedy = (
                f"did you mean [{base}.{guess}]?" if guess else f"remove the section, or add {model} to MODEL_NAMES"
            )
            ini.complain(
                line, f"[{section}] for a model that is none of the run's", f"one of {', '.join(models)}", remedy
            )
        elif base == TUNABLE:
            values["model_tunable"][model] = read_ranges(ini, section)
        else:
            values["model_hyperparameters"][model] = read_constants(ini, section)
    return {name: {model: found for model, found in sections.items() if found} for name, sections in values.items()}


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
