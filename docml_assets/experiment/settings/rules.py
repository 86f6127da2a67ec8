"""Rules between settings. Each is a function from the settings to what is broken; those that read a wrong key are left out."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import sqlglot
from sqlglot import exp

from docml_assets.experiment.settings.hyperparameters import combinations
from docml_assets.experiment.settings.keys import Keys
from docml_contract.file_names import matches
from docml_contract.hyperparameters import Interval, SearchRange
from docml_contract.log_lines import TRAINER_METRICS
from docml_contract.names import BASELINE
from resources.errors import RefusedQuery
from resources.label_values import TEXT_COLUMNS, column_named
from resources.queries import check_query

# What deployments' databases speak. Settings do not know which, so a query is right if one of them understands it; the label
# source checks it again in its own dialect.
_DIALECTS = ("postgres", "sqlite", "mysql", "tsql")

Complaint = tuple[str, str, str]  # found, expected, remedy
MAX_METRIC_NAME = 255
MAX_REGEX = 500


@dataclass(frozen=True)
class Broken:
    """A broken rule, at the key that is to be changed."""

    key: str
    found: str
    expected: str
    remedy: str
    section: str = "settings"


Ranges = Mapping[str, SearchRange]
Rule = Callable[[Keys, Ranges], Iterator[Broken]]
_RULES: list[tuple[frozenset[str], Rule]] = []


def rule(*reads: str) -> Callable[[Rule], Rule]:
    """Register a rule that reads these attributes."""

    def register(function: Rule) -> Rule:
        _RULES.append((frozenset(reads), function))
        return function

    return register


def broken_rules(keys: Keys, searches: Sequence[Ranges], bad: Iterable[str]) -> list[Broken]:
    """All broken rules among those that read none of the `bad` attributes. searches: what the models' tunings search."""
    wrong = frozenset(bad)
    rules = [check for reads, check in _RULES if not reads & wrong]
    return list(dict.fromkeys(broken for check in rules for ranges in searches for broken in check(keys, ranges)))


@rule("run_training", "run_tuning")
def _one_of_training_and_tuning(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if keys.run_training and keys.run_tuning:
        yield Broken(
            "RUN_TUNING",
            "RUN_TRAINING and RUN_TUNING both on",
            "at most one of them: the best trial of a tuning is the run's model",
            "write RUN_TRAINING = false or RUN_TUNING = false",
        )


@rule("files_from_prod", "files_on_research")
def _research_holds_prod(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    missing = _without(keys.files_from_prod, keys.files_on_research)
    if missing:
        yield Broken(
            "FILES_ON_RESEARCH",
            f"FILES_ON_RESEARCH without {', '.join(missing)}",
            "all of FILES_FROM_PROD and what process_func creates",
            f"add {', '.join(missing)}, or leave the key out if there is no process_func",
        )


@rule("files_on_research", "model_input_files", "files_from_prod")
def _inputs_exist(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    missing = [
        entry
        for entry in _without(keys.model_input_files, keys.files_on_research)
        if not any(matches(name, entry) for name in keys.files_on_research)
    ]
    if missing:
        yield Broken(
            "MODEL_INPUT_FILES",
            f"{', '.join(missing)}, which no artifact needs to have",
            f"files out of FILES_ON_RESEARCH ({', '.join(keys.files_on_research)})",
            "add them to FILES_ON_RESEARCH (and to FILES_FROM_PROD, unless process_func creates them), or remove them here",
        )


@rule("files_optional", "files_on_research", "files_from_prod")
def _optional_files_are_wanted(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    wanted = (*keys.files_from_prod, *keys.files_on_research)
    unwanted = [entry for entry in keys.files_optional if not any(matches(other, entry) for other in wanted)]
    if unwanted:
        yield Broken(
            "FILES_OPTIONAL",
            f"{', '.join(unwanted)}, which is neither in FILES_FROM_PROD nor in FILES_ON_RESEARCH",
            f"names and patterns as they stand there ({', '.join(dict.fromkeys(wanted))})",
            "write them as they stand there, or remove them here: files that nobody names need not be optional",
        )


def _without(entries: Iterable[str], names: Iterable[str]) -> list[str]:
    """Those of the entries that no name or pattern among `names` covers."""
    return [entry for entry in entries if not any(matches(entry, name) for name in names)]


@rule("model_names", "baseline")
def _baseline_has_its_name(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if keys.baseline and BASELINE in keys.model_names:
        yield Broken(
            "MODEL_NAMES",
            f"a model named {BASELINE}, which is the report's name for its baseline",
            "another name",
            "rename the model, or write BASELINE = false",
        )


@rule("seeds", "run_tuning")
def _seeds(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if len(keys.seeds) == 1:
        yield Broken(
            "SEEDS",
            f"SEEDS = {keys.seeds[0]}",
            "at least two seeds: one says nothing about the spread",
            f"write seed = {keys.seeds[0]} under [hyperparameters], or more seeds",
        )
    if keys.seeds and keys.run_tuning:
        yield Broken(
            "SEEDS",
            "SEEDS with RUN_TUNING = true",
            "SEEDS with trainings only: the trials of a search are trained once each",
            "remove SEEDS, or write what the search found into [hyperparameters] and turn RUN_TUNING off",
        )


@rule("learning_curve", "run_tuning", "training_instance_count")
def _learning_curve(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if keys.learning_curve and keys.run_tuning:
        yield Broken(
            "LEARNING_CURVE",
            "LEARNING_CURVE with RUN_TUNING = true",
            "LEARNING_CURVE with trainings only: a search has no score by number of documents",
            "remove LEARNING_CURVE, or write what the search found into [hyperparameters] and turn RUN_TUNING off",
        )
    if keys.learning_curve and keys.training_instance_count > 1:
        yield Broken(
            "LEARNING_CURVE",
            f"LEARNING_CURVE with TRAINING_INSTANCE_COUNT = {keys.training_instance_count}",
            "one machine a training: the jobs that train on parts predict the test split themselves",
            "write TRAINING_INSTANCE_COUNT = 1, or remove LEARNING_CURVE",
        )


@rule("split")
def _shares(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if abs(sum(keys.split) - 1) > 1e-6 or min(keys.split) <= 0:
        yield Broken(
            "SPLIT",
            f"SPLIT = {', '.join(f'{share:g}' for share in keys.split)} (sum {sum(keys.split):g})",
            "three shares above 0 that sum to 1",
            "write for example SPLIT = 0.8, 0.1, 0.1",
        )


@rule("labels_query", "split_by")
def _query(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    for found, expected, remedy in query_problems(keys.labels_query, keys.split_by):
        yield Broken("LABELS_QUERY", found, expected, remedy)


@rule("predict_query")
def _predict_query(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if keys.predict_query is None:
        return
    for found, expected, remedy in query_problems(keys.predict_query, None, TEXT_COLUMNS[:1]):
        yield Broken("PREDICT_QUERY", found, expected, remedy)


@rule("split_by")
def _split_by(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if keys.split_by in ("artifact_guid", "label"):
        yield Broken(
            "SPLIT_BY",
            f"SPLIT_BY = {keys.split_by}",
            "a column whose values several documents share, across labels",
            "name another column of LABELS_QUERY, or leave the key out",
        )


@rule("run_tuning", "tuning_strategy", "max_jobs", "max_parallel_jobs")
def _search(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if keys.run_tuning and not ranges:
        yield Broken(
            "RUN_TUNING",
            "RUN_TUNING = true without anything in [tunable]",
            "a search space",
            "add for example learning_rate = 1e-6 -> 1e-4 log under [tunable], or turn RUN_TUNING off",
        )
    if keys.max_parallel_jobs > keys.max_jobs:
        yield Broken(
            "MAX_PARALLEL_JOBS",
            f"MAX_PARALLEL_JOBS = {keys.max_parallel_jobs} with MAX_JOBS = {keys.max_jobs}",
            "at most MAX_JOBS",
            "lower it or raise MAX_JOBS",
        )
    if keys.tuning_strategy != "Grid":
        return
    for name, found in ranges.items():
        if isinstance(found, Interval):
            yield Broken(
                name,
                f"{name} = {found.low:g} -> {found.high:g} with TUNING_STRATEGY = Grid",
                "choices: a grid cannot go through an interval",
                f"write values between commas, or another TUNING_STRATEGY for {name}",
                section="tunable",
            )
    trials = combinations(ranges)
    if trials > keys.max_jobs and not any(isinstance(found, Interval) for found in ranges.values()):
        yield Broken(
            "MAX_JOBS",
            f"MAX_JOBS = {keys.max_jobs} for a grid of {trials} trials",
            "at least as many jobs as the grid has trials",
            f"write MAX_JOBS = {trials}, or search fewer values",
        )


@rule("metric_definitions", "objective_metric_name")
def _metrics(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    names = [name for name, _ in keys.metric_definitions]
    for name, regex in keys.metric_definitions:
        complaint = _regex_complaint(regex)
        if complaint or not name or len(name) > MAX_METRIC_NAME or names.count(name) > 1:
            yield Broken(
                "METRIC_DEFINITIONS",
                f"{name or 'an empty name'}: {complaint or 'a name that is empty, too long or repeated'}",
                f"distinct names of at most {MAX_METRIC_NAME} characters, each with a regular expression of at most "
                f"{MAX_REGEX} with one capture group",
                r'write for example {"my_metric": "my_metric=([0-9.eE+-]+)"}',
            )
    if keys.objective_metric_name not in (*TRAINER_METRICS, *names):
        yield Broken(
            "OBJECTIVE_METRIC_NAME",
            f"OBJECTIVE_METRIC_NAME = {keys.objective_metric_name}, which nothing reads from the log",
            f"one of {', '.join(TRAINER_METRICS)}, or a name in METRIC_DEFINITIONS",
            "correct the name or define the metric",
        )


def _regex_complaint(regex: str) -> str | None:
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        return f"no regular expression ({error})"
    if len(regex) > MAX_REGEX:
        return f"{len(regex)} characters"
    return None if groups == 1 else f"{groups} capture groups"


@rule("training_use_spot", "training_max_wait_seconds", "training_max_runtime_seconds", "training_keep_alive_seconds")
def _spot(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    wait, runtime = keys.training_max_wait_seconds, keys.training_max_runtime_seconds
    if keys.training_use_spot and wait is not None and wait < runtime:
        yield Broken(
            "TRAINING_MAX_WAIT_SECONDS",
            f"TRAINING_MAX_WAIT_SECONDS = {wait} with TRAINING_MAX_RUNTIME_SECONDS = {runtime}",
            "at least TRAINING_MAX_RUNTIME_SECONDS: the wait includes the training",
            f"write TRAINING_MAX_WAIT_SECONDS = {2 * runtime}, or lower the run time",
        )
    if not keys.training_use_spot and wait is not None:
        yield Broken(
            "TRAINING_MAX_WAIT_SECONDS",
            "TRAINING_MAX_WAIT_SECONDS without spot",
            "TRAINING_USE_SPOT = true, since only spot training waits",
            "remove the key or turn spot on",
        )
    if keys.training_use_spot and keys.training_keep_alive_seconds:
        yield Broken(
            "TRAINING_KEEP_ALIVE_SECONDS",
            f"TRAINING_KEEP_ALIVE_SECONDS = {keys.training_keep_alive_seconds} with spot",
            "no warm pool with spot: SageMaker refuses both together",
            "remove the key or turn spot off",
        )


@rule("use_distributed", "training_instance_count")
def _machines(keys: Keys, ranges: Ranges) -> Iterator[Broken]:
    if keys.training_instance_count > 1 and not keys.use_distributed:
        yield Broken(
            "TRAINING_INSTANCE_COUNT",
            f"{keys.training_instance_count} training machines with USE_DISTRIBUTED = false",
            "one machine, as all but the first would idle at full price",
            "write USE_DISTRIBUTED = true or TRAINING_INSTANCE_COUNT = 1",
        )


@lru_cache(maxsize=256)  # the settings of a hundred runs ask about few queries, again and again
def query_problems(query: str, split_by: str | None, columns: tuple[str, ...] = TEXT_COLUMNS) -> tuple[Complaint, ...]:
    """What is wrong with the query, which must yield these columns."""
    refusals = []
    for dialect in _DIALECTS:
        try:
            checked = check_query(query, dialect)
        except RefusedQuery as refusal:
            refusals.append(str(refusal))
            continue
        return tuple(_missing_columns(checked, dialect, columns, split_by))
    found, _, expected = refusals[0].partition("; expected ")
    remedy = f"write for example SELECT {', '.join(columns)} FROM documents"
    return ((found, expected or "one SELECT that only reads", remedy),)


def _missing_columns(query: str, dialect: str, columns: Sequence[str], split_by: str | None) -> Iterator[Complaint]:
    statement = sqlglot.parse_one(query, read=dialect).unnest()
    assert isinstance(statement, exp.Query)
    if statement.is_star or any(isinstance(part, exp.Star) for part in statement.selects):
        return  # the database knows which columns a star stands for
    missing = [name for name in columns if column_named(statement.named_selects, name) is None]
    if missing:
        yield (
            f"a query without the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            f"{', '.join(columns)} and any further columns",
            f"select {missing[0]}, or rename a column: SELECT … AS {missing[0]}",
        )
    if split_by and column_named(statement.named_selects, split_by) is None:
        yield (
            f"a query without the column {split_by} that SPLIT_BY names",
            "the grouping column among the query's columns",
            f"select {split_by} too, or correct SPLIT_BY",
        )
