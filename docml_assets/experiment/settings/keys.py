"""The key table: every key of settings.ini's [settings], its type, default, limits and meaning.

`docs/settings.md` is generated from this table (`python docs/make_settings.py`).
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticUndefined

from docml_assets.experiment.settings.values import (
    FileNames,
    Flag,
    InstanceType,
    Labels,
    MetricDefinitions,
    ModelNames,
    OrAuto,
    OrNone,
    Seeds,
    Shares,
    any_case,
)

DAY = 86_400
FLAG = ("true or false", "true")
COUNT = ("a whole number from 1", "4")


def key(
    default: Any,
    meaning: str,
    expected: tuple[str, str],
    *,
    operational: bool = False,
    shown: str | None = None,
    factory: Callable[[dict[str, Any]], Any] | None = None,
    **limits: Any,
) -> Any:
    """A key of the table. expected: what a value looks like, and an example; operational: it does not freeze with a run;
    shown: the default as the documentation puts it; factory: the default made from the keys above (instead of default)."""
    extra: dict[str, Any] = {
        "expected": expected[0],
        "example": expected[1],
        "operational": operational,
        "shown": shown,
    }
    where = {"default_factory": factory} if factory else {"default": default}
    return Field(**where, description=meaning, json_schema_extra=extra, **limits)


def required(meaning: str, expected: tuple[str, str], **limits: Any) -> Any:
    """A key without a default."""
    return key(PydanticUndefined, meaning, expected, **limits)


def instance_type(default: str, what: str) -> Any:
    """The key for the machine of a job."""
    return key(default, f"machine of the {what} job", ("a SageMaker instance type", "ml.m5.xlarge"), operational=True)


def instance_count(what: str) -> Any:
    """The key for the number of a job's machines."""
    return key(1, f"machines of the {what} job", ("1 to 100", "2"), operational=True, ge=1, le=100)


def volume(default: int, what: str) -> Any:
    """The key for the disk of a job's machines, GB."""
    return key(
        default, f"disk of each machine of the {what} job, GB", ("1 to 16384", "50"), operational=True, ge=1, le=16_384
    )


def max_runtime(longest: int, what: str) -> Any:
    """The key for a job's time limit, seconds."""
    meaning = f"seconds after which the {what} job is stopped and counts as failed"
    return key(DAY, meaning, (f"60 to {longest}", "7200"), operational=True, ge=60, le=longest)


class Keys(BaseModel):
    """One attribute a key, in lower case, in the order of the documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    # Which steps
    run_reconciliation: Flag = key(True, "an automatic run reconciles labels and files", FLAG, operational=True)
    run_preparation: Flag = key(True, "an automatic run encodes and splits the documents", FLAG, operational=True)
    run_training: Flag = key(True, "an automatic run trains; excludes RUN_TUNING", FLAG, operational=True)
    run_tuning: Flag = key(False, "an automatic run searches [tunable]; excludes RUN_TRAINING", FLAG, operational=True)
    run_inference: Flag = key(True, "an automatic run predicts the test split and reports", FLAG, operational=True)
    run_num: int = key(
        1, "the run that `docml run` and the experiment sensor start", COUNT, operational=True, ge=1, le=999_999
    )
    model_names: ModelNames = required(
        "one model, or several: a comparison on the same data",
        (
            "names of letters, digits, '.' and '-' (no underscore: it ends the prefix of a model's columns)",
            "longformer",
        ),
        min_length=1,
    )

    # Documents and labels
    labels_query: str = required(
        "one SELECT yielding artifact_guid, label, file_hash and any further columns; the connection is the deployment's",
        ("one SELECT", "SELECT artifact_guid, label, file_hash FROM documents"),
        min_length=1,
    )
    max_label_rows: Annotated[int | None, OrNone] = key(None, "refuse more label rows than this", COUNT, ge=1)
    use_case: str = key(
        "classification",
        "what becomes of rows and files before they count: as they are, mapped by labels.csv, each page a document, or what a module's "
        "functions make of them (docs/use-cases.md)",
        ("classification, mapped, pages, ./use_case.py or the name of an installed plug-in", "./use_case.py"),
        pattern=r"^(\./use_case\.py|[A-Za-z0-9][A-Za-z0-9._-]{0,62})$",
    )
    files_from_prod: FileNames = required(
        "files copied per artifact from the production store; a pattern stands for one or more, in natural order",
        ("file names and patterns", "raw_text.json, page_*.png"),
        min_length=1,
    )
    files_on_research: FileNames = key(
        None,
        "files every artifact must have in the end: FILES_FROM_PROD plus what process_func creates",
        ("file names and patterns", "raw_text.json, words.json"),
        shown="FILES_FROM_PROD",
        factory=lambda earlier: earlier.get("files_from_prod", ()),
    )
    files_optional: FileNames = key(
        (),
        "files out of FILES_FROM_PROD or FILES_ON_RESEARCH that an artifact may lack",
        ("file names and patterns out of these two", "page_*.png"),
        shown="none",
    )
    overwrite: Flag = key(False, "copy and process again what is already there, as new versions", FLAG)
    max_failed_share: float = key(
        0.0,
        "share of the artifacts that may fail in process_func or encode_data before the step fails",
        ("a share from 0 to 1", "0.01"),
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    reconciliation_processes: Annotated[int | None, OrAuto] = key(
        None,
        "worker processes of process_func; auto: one per core",
        COUNT,
        operational=True,
        shown="auto",
        ge=1,
        le=512,
    )
    preparation_processes: Annotated[int | None, OrAuto] = key(
        None, "encoding processes per machine; auto: one per core", COUNT, operational=True, shown="auto", ge=1, le=512
    )
    cpu_processes: int = key(1, "training processes on a machine without GPU", COUNT, operational=True, ge=1, le=512)

    # Prepared data
    encoded_data_dir: str = key(
        "full_dataset",
        "name of the encoded data set",
        ("a name of letters, digits, '.', '_' and '-'", "partial_dataset"),
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
    )
    max_artifacts: Annotated[int | None, OrNone] = key(
        None, "at most this many documents, stratified by label, for partial data sets", COUNT, ge=1
    )
    model_input_files: FileNames = required(
        "files passed to encode_data: for a name its path (None where it is optional and missing), for a pattern a list of paths",
        ("file names and patterns out of FILES_ON_RESEARCH", "raw_text.json"),
        min_length=1,
    )
    ignored_labels: Labels = key((), "labels left out", ("labels", "unknown, other"), shown="none")
    num_labels_threshold: int = key(
        0, "labels with fewer documents are left out", ("a whole number from 0", "10"), ge=0
    )
    near_duplicate_threshold: float = key(
        0.9,
        "similarity from which two documents count as near-duplicates; 1 turns it off",
        ("a similarity above 0, at most 1", "0.9"),
        gt=0,
        le=1,
    )
    baseline: Flag = key(
        True,
        "fit TF-IDF (without tokens: pooled values) with logistic regression when the data are encoded, and judge every model against it",
        FLAG,
    )
    seeds: Seeds = key(
        (),
        "train each model once with each of these seeds: scores come with their spread, verdicts take it into "
        "account, and the run's model is the one with the highest validation macro-F1",
        ("two to twenty whole numbers from 0, comma-separated", "13, 14, 15"),
        shown="none: once, with `seed`",
        max_length=20,
    )
    learning_curve: Flag = key(
        False,
        "train the first model on two halves, quarters and eighths of the train documents as well: the report forecasts its score with twice the documents",
        FLAG,
    )
    split: Shares = key(
        (0.8, 0.1, 0.1), "train, valid and test shares", ("three shares that sum to 1", "0.8, 0.1, 0.1")
    )
    split_seed: int = key(13, "seed of the split", ("0 to 4294967295", "13"), ge=0, le=2**32 - 1)
    split_by: Annotated[str | None, OrNone] = key(
        None,
        "a label-table column whose groups never straddle splits",
        ("a column of LABELS_QUERY", "customer"),
        pattern=r"^\S+$",
    )

    # Machines
    use_distributed: Flag = key(False, "train in several processes and on several machines", FLAG)
    preparation_instance_type: InstanceType = instance_type("ml.m5.4xlarge", "preparation")
    preparation_instance_count: int = instance_count("preparation")
    preparation_volume_gb: int = volume(50, "preparation")
    preparation_max_runtime_seconds: int = max_runtime(9 * DAY, "preparation")
    training_instance_type: InstanceType = instance_type("ml.g5.xlarge", "training")
    training_instance_count: int = instance_count("training")
    training_volume_gb: int = volume(100, "training")
    training_max_runtime_seconds: int = max_runtime(28 * DAY, "training")
    training_use_spot: Flag = key(
        False,
        "train on spare capacity, cheaper and interruptible; training resumes from checkpoints",
        FLAG,
        operational=True,
    )
    training_max_wait_seconds: Annotated[int | None, OrNone] = key(
        None,
        "with spot: seconds of waiting and training together",
        ("at least TRAINING_MAX_RUNTIME_SECONDS", "172800"),
        operational=True,
        shown="with spot twice TRAINING_MAX_RUNTIME_SECONDS, else none",
        factory=lambda earlier: _default_wait(earlier),
        ge=60,
    )
    training_keep_alive_seconds: Annotated[int | None, OrNone] = key(
        None,
        "seconds for which the machines stay warm for the next training, at full price",
        ("0 to 21600", "1800"),
        operational=True,
        ge=0,
        le=21_600,
    )
    inference_instance_type: InstanceType = instance_type("ml.g5.xlarge", "inference")
    inference_instance_count: int = instance_count("inference")
    inference_volume_gb: int = volume(50, "inference")
    inference_max_runtime_seconds: int = max_runtime(9 * DAY, "inference")
    inference_in_training: Flag = key(
        True,
        "where one machine trains: its job predicts the test split with the exported model afterwards, so that none is started for it",
        FLAG,
        operational=True,
    )
    inference_speedup: Annotated[Literal["auto"] | None, any_case("auto"), OrNone] = key(
        None,
        "auto: export the model in bfloat16, where the CPU that trains computes in it, that is faster, and hardly a validation document gets another label",
        ("auto", "auto"),
    )
    docker_image: Annotated[str | None, OrNone] = key(
        None,
        "the experiment's image URI",
        ("an image URI", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/docml:exp-3333"),
        shown="the deployment's, DOCML_IMAGE",
        pattern=r"^[A-Za-z0-9](?:[:/]?[A-Za-z0-9._@-])*$",  # without a scheme: https:// is none of an image's URI
        max_length=255,
    )

    # Tuning
    objective_metric_name: str = key(
        "valid_f1", "the metric that tuning optimizes", ("a metric's name", "valid_f1"), pattern=r"^\S{1,255}$"
    )
    objective_type: Annotated[Literal["Maximize", "Minimize"], any_case("Maximize", "Minimize")] = key(
        "Maximize", "whether a higher or a lower value is better", ("Maximize or Minimize", "Maximize")
    )
    metric_definitions: MetricDefinitions = key(
        (),
        "JSON, name to regular expression with one capture group: further metrics read from the training log",
        ("a JSON object", r'{"my_metric": "my_metric=([0-9.eE+-]+)"}'),
        shown="what the trainer prints",
        max_length=30,
    )
    max_jobs: int = key(10, "trainings of a search", ("1 to 750", "20"), ge=1, le=750)
    max_parallel_jobs: int = key(1, "trainings of a search that run at the same time", ("1 to 100", "2"), ge=1, le=100)
    tuning_strategy: Annotated[Literal["Bayesian", "Random", "Grid"], any_case("Bayesian", "Random", "Grid")] = key(
        "Bayesian", "how the search chooses; Grid takes choices only", ("Bayesian, Random or Grid", "Bayesian")
    )
    comparison_parallel_jobs: Annotated[int | None, OrNone] = key(
        None,
        "trainings that run at the same time, of the models of a comparison and of SEEDS",
        COUNT,
        operational=True,
        shown="1 locally, all on aws",
        ge=1,
        le=100,
    )

    # Use
    auto_accept_precision: Annotated[float | None, OrNone] = key(
        None,
        "precision above which documents may be accepted without a person; makes the decision policy",
        ("a share between 0 and 1", "0.98"),
        gt=0,
        lt=1,
        allow_inf_nan=False,
    )
    predict_query: Annotated[str | None, OrNone] = key(
        None,
        "one SELECT yielding the artifact_guid of production documents to classify with this run's model",
        ("one SELECT", "SELECT artifact_guid FROM documents WHERE label IS NULL"),
        min_length=1,
    )

    # Operation
    rerun_on_new_data: Flag = key(
        False, "let the data sensor start the next run when labels or files change", FLAG, operational=True
    )
    worse_than_previous: Annotated[Literal["warn", "block"], any_case("warn", "block")] = key(
        "warn",
        "what follows when the report is worse than the previous run's: a warning, or an error that blocks deployment",
        ("warn or block", "warn"),
    )
    max_cost_usd: Annotated[float | None, OrNone] = key(
        None,
        "refuse a run whose worst case costs more, where prices are known",
        ("an amount above 0", "50"),
        operational=True,
        gt=0,
        allow_inf_nan=False,
    )
    wandb_mode: Annotated[Literal["disabled", "offline", "online"], any_case("disabled", "offline", "online")] = key(
        "disabled", "tracking with Weights & Biases", ("disabled, offline or online", "online"), operational=True
    )
    wandb_project: str = key(
        "docml", "its project", ("a name", "docml"), operational=True, pattern=r"^[^\s/\\#?%:]{1,128}$"
    )
    wandb_entity: Annotated[str | None, OrNone] = key(
        None, "its team or user", ("a name", "my-team"), operational=True, pattern=r"^[^\s/\\#?%:]{1,128}$"
    )


def _default_wait(earlier: dict[str, Any]) -> int | None:
    runtime = earlier.get("training_max_runtime_seconds")
    return 2 * runtime if earlier.get("training_use_spot") and runtime else None
