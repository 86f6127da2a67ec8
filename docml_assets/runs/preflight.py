"""Everything that can be known of an experiment before a job starts: mistakes in its folder, skipped steps that leave nothing to work
on, and what the deployment lacks."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from docml_assets.errors import ExperimentError, Problem, SettingsError
from docml_assets.experiment.folder import (
    SETTINGS,
    ExperimentFolder,
    dockerfile_problems,
    read_text,
    remedy_for_missing,
)
from docml_assets.experiment.functions import check_functions, defined_functions, import_problems
from docml_assets.experiment.image_contents import download_problems, image_problems
from docml_assets.experiment.settings.ini import parse_ini
from docml_assets.experiment.settings.settings import SECTIONS, Settings, parse_settings
from docml_assets.experiment.use_case import NEEDS, OWN
from docml_assets.runs.claims import run_folders
from docml_assets.runs.cost_plan import CostPlan
from docml_contract.base import BadName
from docml_contract.file_names import is_optional, is_pattern
from docml_contract.names import MANIFEST, SECRET_REFERENCE, STEPS, USER_FUNCTIONS, RunPlace
from resources.aws import is_reference
from resources.errors import ResourceError, SettingError
from resources.jobs.interface import read_prices
from resources.store import Store

ENVIRONMENT = "the environment"
# Validation does not wait for a store in an outage: what it cannot ask may be finished.
ANSWER_SECONDS = 5.0
_STATIC_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

Complaint = tuple[str, str, str]  # found, expected, remedy
Finished = Callable[[str], bool]  # whether an earlier run has finished the step of a RUN_ key


def validate(path: Path, environment: Mapping[str, str]) -> list[Problem]:
    """Everything that can be known before a job starts; an empty list means that nothing is wrong. Writes nothing.

    environment: the deployment's (DOCML_* variables).
    """
    try:
        folder = ExperimentFolder.load(path)
    except BadName as error:
        return [Problem(str(path), 0, f"the folder name {path.name!r}", str(error), "rename the folder")]
    except ExperimentError:
        return _missing_files(path)
    problems = check_functions(
        folder.functions_source, str(path / USER_FUNCTIONS), environment.get("DOCML_WORKER_PYTHON") or None
    )
    problems += dockerfile_problems(path)
    if environment.get("DOCML_ENV") == "aws":
        problems += image_problems(folder.functions_source, str(path / USER_FUNCTIONS), path)
        if not has_way_out(environment):
            problems += download_problems(folder.functions_source, str(path / USER_FUNCTIONS), path)
    try:
        settings = folder.settings
    except SettingsError as error:
        problems += error.problems
    else:
        problems += _unmade_files(settings, folder)
        problems += use_case_problems(folder, environment)
        store = Store.open(environment.get("DOCML_STORE") or "./storage", environment=environment)
        finished = finished_in(store.with_patience(ANSWER_SECONDS), folder.name, settings)
        problems += step_problems(settings, str(path / SETTINGS), folder.settings_text, finished)
        problems += deployment_problems(settings, environment)
    return sorted(problems, key=lambda problem: (problem.file, problem.line))


def _missing_files(path: Path) -> list[Problem]:
    """One problem a file that cannot be read; mistakes in the other one are found too."""
    problems = []
    if not path.is_dir():
        return [Problem(str(path), 0, "no such folder", "an experiment folder", remedy_for_missing(path))]
    for name in (SETTINGS, USER_FUNCTIONS):
        try:
            text = read_text(path / name)
        except ExperimentError as error:
            found, _, remedy = str(error).removeprefix(f"{path / name}: ").partition("; ")
            problems.append(Problem(str(path / name), 0, found, f"{SETTINGS} and {USER_FUNCTIONS}", remedy))
            continue
        if name == USER_FUNCTIONS:
            problems += check_functions(text, str(path / name))
        else:
            try:
                parse_settings(text, path / name)
            except SettingsError as error:
                problems += error.problems
    return problems


def use_case_problems(folder: ExperimentFolder, environment: Mapping[str, str]) -> list[Problem]:
    """What is wrong with the use case, and what its worker's Python lacks."""
    try:
        found = folder.use_case
    except SettingsError as error:
        return error.problems
    if found is None:
        return []
    path = str(folder.path / SETTINGS)
    problems = []
    if found.functions:
        needs = sorted({module for function in found.functions for module in NEEDS.get(function, ())})
        own = str(folder.path / OWN) if found.name == OWN else path
        problems += import_problems(found.text, own, environment.get("DOCML_WORKER_PYTHON") or None, needs)
    if found.makes_units and not any(map(is_pattern, folder.settings.model_input_files)):
        line = parse_ini(folder.settings_text, path, SECTIONS).line("settings", "USE_CASE")
        names = ", ".join(folder.settings.model_input_files)
        expected = "a pattern in MODEL_INPUT_FILES, such as page_*.png: each file that it matches is a page"
        remedy = "name one; pages that are not files yet are made by process_func"
        problems.append(
            Problem(path, line, f"USE_CASE = {found.name} with MODEL_INPUT_FILES = {names}", expected, remedy)
        )
    return problems


def _unmade_files(settings: Settings, folder: ExperimentFolder) -> list[Problem]:
    """Files that every artifact must have in the end, though nothing makes them."""
    made = [
        name
        for name in settings.files_on_research
        if name not in settings.files_from_prod and not is_optional(name, settings.files_optional)
    ]
    if not made or "process_func" in defined_functions(folder.functions_source):
        return []
    return [
        Problem(
            str(folder.path / USER_FUNCTIONS),
            0,
            f"no process_func, though FILES_ON_RESEARCH names {', '.join(made)}",
            "a process_func(artifact, directory) that creates them, or files of production only",
            "write it, or name the files in FILES_FROM_PROD, or remove them from FILES_ON_RESEARCH",
        )
    ]


def step_problems(settings: Settings, path: str, text: str, finished: Finished) -> list[Problem]:
    """Skipped steps whose results a performed step needs and no run up to this one has."""
    ini = parse_ini(text, path, SECTIONS)
    trains = settings.run_training or settings.run_tuning
    needs = (
        ("RUN_RECONCILIATION", settings.run_reconciliation, settings.run_preparation, "RUN_PREPARATION"),
        ("RUN_PREPARATION", settings.run_preparation, trains, "RUN_TRAINING or RUN_TUNING"),
        ("RUN_PREPARATION", settings.run_preparation, settings.run_inference and not trains, "RUN_INFERENCE"),
        ("RUN_TRAINING", trains, settings.run_inference, "RUN_INFERENCE"),
    )
    return [
        Problem(
            path,
            ini.line("settings", key),
            f"{key} off in run {settings.run_num}, which is to perform {user}",
            "a step whose result a later one needs, as no run so far has one to take",
            f"turn {key} on, or turn off {user}",
        )
        for key, performed, needed, user in needs
        if needed and not performed and not finished(key)
    ]


def finished_in(store: Store, experiment: str, settings: Settings) -> Finished:
    """Whether some run of the experiment, up to the settings' own, has finished a step. A store that does not answer may have."""

    def folders(place: RunPlace, key: str) -> list[list[str]]:
        """Alternatives: all folders of one of them are needed."""
        if key == "RUN_RECONCILIATION":
            return [[place.reconciliation]]
        if key == "RUN_PREPARATION":
            return [[place.preparation]]
        return [[place.trained(model, tuned=tuned) for model in settings.model_names] for tuned in (False, True)]

    def finished(key: str) -> bool:
        try:
            numbers = [number for number in run_folders(store, experiment) if number <= settings.run_num]
            return any(
                all(store.exists(f"{folder}/{MANIFEST}") for folder in alternative)
                for number in reversed(numbers)
                for alternative in folders(RunPlace(experiment, number), key)
            )
        except ResourceError:
            return True

    return finished


def deployment_problems(settings: Settings, environment: Mapping[str, str]) -> list[Problem]:
    """What the deployment's environment lacks for this experiment. Asks no service."""
    return [
        Problem(ENVIRONMENT, 0, found, expected, remedy)
        for found, expected, remedy in _complaints(settings, environment)
    ]


def _complaints(settings: Settings, environment: Mapping[str, str]) -> Iterator[Complaint]:
    kind = environment.get("DOCML_ENV") or "local"
    if kind not in ("local", "aws"):
        yield f"DOCML_ENV = {kind}", "local or aws", "correct or unset DOCML_ENV"
    yield from _costs(settings, environment, kind)
    yield from _tracking(settings, environment, kind)
    python = environment.get("DOCML_WORKER_PYTHON")
    if python and shutil.which(python) is None:
        yield f"DOCML_WORKER_PYTHON = {python}", "a Python interpreter", "correct or unset DOCML_WORKER_PYTHON"
    if kind == "aws":
        yield from _aws(settings, environment)


def has_way_out(environment: Mapping[str, str]) -> bool:
    """Whether jobs reach the internet: with the network of SageMaker's own, or in subnets that are said to have a way out."""
    return not environment.get("DOCML_SUBNETS") or environment.get("DOCML_SUBNETS_INTERNET") == "true"


def _costs(settings: Settings, environment: Mapping[str, str], kind: str) -> Iterator[Complaint]:
    """The prices, and on aws the worst cases of all jobs of the run, together."""
    try:
        prices = read_prices(environment)
    except SettingError:
        found = f"DOCML_PRICES = {environment['DOCML_PRICES'][:60]}"
        yield found, "JSON, instance type to USD an hour", 'write for example {"ml.g5.xlarge": 1.41}'
        return
    limit = settings.max_cost_usd if kind == "aws" else None
    flagged = [step for step in STEPS if getattr(settings, f"run_{step}")]
    worst = CostPlan.make(settings, flagged, prices).worst_cases()
    if limit is None or sum(worst.values()) <= limit:
        return
    parts = ", ".join(f"{step} {usd:.2f}" for step, usd in worst.items())
    yield (
        f"a run that may cost {sum(worst.values()):.2f} USD ({parts})",
        f"at most MAX_COST_USD = {limit:g}",
        "lower MAX_RUNTIME_SECONDS, INSTANCE_TYPE or INSTANCE_COUNT of a step, MAX_JOBS or the number of models, or raise "
        "MAX_COST_USD",
    )


def _tracking(settings: Settings, environment: Mapping[str, str], kind: str) -> Iterator[Complaint]:
    key = environment.get("WANDB_API_KEY")
    if settings.wandb_mode != "online":
        return
    if not key:
        yield (
            "WANDB_MODE = online without WANDB_API_KEY",
            "the key of the tracking account",
            "set it, or WANDB_MODE = offline",
        )
    elif kind == "aws" and not is_reference(key):
        yield (
            "WANDB_API_KEY as plain text on aws",
            f"a reference {SECRET_REFERENCE}NAME#key, which containers resolve with the job's role",
            "put the key into Secrets Manager and refer to it",
        )
    if kind == "aws" and not has_way_out(environment) and not environment.get("WANDB_BASE_URL"):
        yield (
            "WANDB_MODE = online with jobs in DOCML_SUBNETS, which cannot reach Weights & Biases",
            "a tracker that jobs reach",
            "set WANDB_MODE = offline (the curves are kept for wandb sync) or WANDB_BASE_URL to a server in the network, or "
            "DOCML_SUBNETS_INTERNET = true if the subnets do have a way out (a NAT gateway)",
        )


def _aws(settings: Settings, environment: Mapping[str, str]) -> Iterator[Complaint]:
    if not (environment.get("DOCML_STORE") or "").startswith("s3://"):
        store = environment.get("DOCML_STORE") or "./storage"
        yield f"DOCML_STORE = {store} on aws", "s3://bucket/prefix, which jobs can reach", "set DOCML_STORE"
    role = environment.get("DOCML_SAGEMAKER_ROLE_ARN")
    if not role or not role.startswith("arn:"):
        found = f"DOCML_SAGEMAKER_ROLE_ARN = {role}" if role else "no DOCML_SAGEMAKER_ROLE_ARN"
        yield found, "the ARN of the role that jobs assume", "set it (deploy/ makes such a role)"
    if not (settings.docker_image or environment.get("DOCML_IMAGE")):
        yield (
            "neither DOCKER_IMAGE nor DOCML_IMAGE",
            "the URI of an image that jobs run",
            "build one with `docml image push`, and set DOCKER_IMAGE or DOCML_IMAGE",
        )
    if bool(environment.get("DOCML_SUBNETS")) != bool(environment.get("DOCML_SECURITY_GROUPS")):
        yield "only one of DOCML_SUBNETS and DOCML_SECURITY_GROUPS", "both or none", "set the other one too"
    internet = environment.get("DOCML_SUBNETS_INTERNET") or "false"
    if internet not in ("true", "false"):
        yield (
            f"DOCML_SUBNETS_INTERNET = {internet}",
            "true or false",
            "say whether the subnets have a way to the internet",
        )
    given = [name for name in _STATIC_KEYS if environment.get(name)]
    if len(given) == 1:
        yield f"{given[0]} alone", " and ".join(_STATIC_KEYS), "set both, or neither and use a profile or role"
    if not (environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or environment.get("AWS_PROFILE")):
        yield "no AWS_REGION", "the region of the jobs", "set AWS_REGION, or AWS_PROFILE with a region"
