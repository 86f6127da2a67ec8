"""Names and places: what may be called what, and where everything lies in the store.

All places are keys relative to the store's root (`DOCML_STORE`), with `/` as separator and no leading slash.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from docml_contract.base import BadName

EXPERIMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")

# The assets of a run, in the order of their making
EXPERIMENT_SNAPSHOT: Final = "experiment_snapshot"
RECONCILED_DATA: Final = "reconciled_data"
LABEL_COUNTS: Final = "label_counts"
ENCODED_SPLITS: Final = "encoded_splits"
BEST_MODEL: Final = "best_torchscript_model"
INFERENCE_REPORT: Final = "inference_report"
# What is made with a finished model, when somebody asks
CLASSIFIED_DOCUMENTS: Final = "classified_documents"
# What they are made of: external, observed
PRODUCTION_LABELS: Final = "production_labels"
PRODUCTION_FILES: Final = "production_files"
# The steps of a run, as RUN_* flags and --steps name them
RECONCILIATION: Final = "reconciliation"
PREPARATION: Final = "preparation"
TRAINING: Final = "training"
TUNING: Final = "tuning"
INFERENCE: Final = "inference"
# What a finished model is used by: the folder from which it answers, and answers on documents without labels
DEPLOYMENT: Final = "deployment"
DEPLOYED_ENDPOINT: Final = "deployed_endpoint"
PRODUCTION: Final = "production"
PREDICTION: Final = "prediction"
STEPS: Final = (RECONCILIATION, PREPARATION, TRAINING, TUNING, INFERENCE)

# A value that begins so refers to a secret: `secretsmanager:NAME#key`
SECRET_REFERENCE = "secretsmanager:"
# Files of a finished folder
CLAIM = "CLAIM.json"  # beside the manifest of a run's snapshot; what all of it is written from
MANIFEST = "MANIFEST.json"
# Files of a job's output folder
OUTPUT = "OUTPUT.json"
RUNNING_FUNCTION = "running_function"  # in a container's folder `output`, beside the reason of a failure
# For messages about functions that end their process.
RAISE_INSTEAD = "a function that cannot go on raises an Exception (a ValueError, say) that tells what is wrong"
# Files of the job's `spec` channel
SPEC = "spec.json"
# By which a job knows the sha256 of its spec: it travels in the request, not in the store
SPEC_HASH_VARIABLE = "DOCML_SPEC_SHA256"
USER_FUNCTIONS = "user_defined_funcs.py"
WITHOUT_A_WORD = f"does {USER_FUNCTIONS}, or a library that it uses, end the process? {RAISE_INSTEAD}"
ARTIFACTS_TABLE = "artifacts.parquet"
PREVIOUS_SPLITS = "previous_splits.parquet"
# Which prepared data a run uses
PREPARED = "prepared.json"
# Prepared data
SPLITS = ("train", "valid", "test")
LABEL2ID = "label2id.json"
ID2LABEL = "id2label.json"
SPLIT_METADATA = "split_metadata.json"
SPLITS_TABLE = "splits.parquet"
BASELINE_TABLE = "baseline.parquet"
SUSPECTS_TABLE = "label_suspects.parquet"
# The name under which the baseline stands among a report's models
BASELINE: Final = "baseline"
# A trained model
TORCHSCRIPT = "model.pt"
WEIGHTS = "model.safetensors"
HISTORY = "history.json"
STATISTICS = "statistics.json"
CURVES = "curves.png"
EXPORT = "export.json"
TRIALS = "trials.json"
SEEDS = "seeds.json"  # where it was trained with several seeds: which one was chosen, by what
OFFLINE_RUNS = "wandb"  # folder of a training's output: the tracking that was not sent, for `wandb sync`
# Inference: what the job hands over …
PREDICTIONS = "predictions.parquet"
DOCUMENTS = "documents.parquet"
UNIT_PREDICTIONS = "unit_predictions.parquet"  # where units are the documents; PREDICTIONS then has a row an artifact
TIMINGS = "timings.json"
VALIDATION = "validation.parquet"  # with a decision policy to be made: the answers on the validation split
# … with one column a model in the tables, `<model>_prediction` and so on
PREDICTION_SUFFIX = "_prediction"
PROBABILITY_SUFFIX = "_probability"
PROBABILITIES_SUFFIX = "_probabilities"
TOKENS_SUFFIX = "_tokens"
# … and the report
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
# A prediction job hands over one table a host
PREDICTION_PARTS = "predictions"
# … a row a document: the columns, each with its type (as Arrow names it; [] for a list of such) and what it says
PREDICTION_COLUMNS: Final = {
    "artifact_guid": ("string", "the document"),
    "prediction": ("string", "its label, as the model says"),
    "probability": ("float32", "of this label"),
    "probabilities": ("float32[]", "of all labels, in the order of the model's context.json"),
    "accepted": ("bool", "whether the decision policy accepts it without a person; null without a policy"),
    "error": ("string", "why there is no answer"),
    "tokens": ("int32", "of the document, as far as the model sees them"),
}
# … and reads the documents from here, and keeps here what is finished while it runs
STAGED_DOCUMENTS = "documents"
FINISHED_PARTS = "parts"
# A deployment folder, besides model.pt, export.json and user_defined_funcs.py
MODEL_CONTEXT = "context.json"
REQUIREMENTS = "requirements.txt"
POLICY = "policy.json"  # where the run has a decision policy
USE_CASE_CODE = "use_case.json"  # where its use case chooses files, or makes units
# Reconciliation
RECONCILED_TABLE = "reconciled_manifest.parquet"
LABEL_ROWS = "label_rows.parquet"
UNITS_TABLE = "units.parquet"  # where parts of artifacts are the documents: artifact_guid, unit, label
COUNTS_BY_LABEL = "unique_labels_and_counts.json"
LABELS_PICTURE = "documents_by_label.png"  # beside the counts; and by split beside prepared.json
# The UI's server gives out reports and pictures below this address: STORED_FILES/<key>?version=<beginning of the data version>
STORED_FILES = "/stored"


def check_experiment_name(name: str) -> str:
    """Return `name`, or raise BadName with the rule."""
    if not EXPERIMENT_NAME.fullmatch(name):
        raise BadName(
            f"experiment name {name!r}: expected a letter or digit followed by at most 62 letters, digits, "
            "'.', '_' or '-', for example EXP-3333-longformer"
        )
    return name


def check_model_name(name: str) -> str:
    """Return `name`, or raise BadName with the rule."""
    if not MODEL_NAME.fullmatch(name):
        raise BadName(
            f"model name {name!r}: expected a letter or digit followed by at most 62 letters, digits, '.' or '-' "
            "(no underscore: it ends the column prefix in a comparison)"
        )
    return name


def column_prefix(model: str, models: tuple[str, ...] | list[str]) -> str:
    """Prefix of `model`'s columns in the encoded data: `longformer_` in a comparison, nothing otherwise."""
    return f"{model}_" if len(models) > 1 else ""


@dataclass(frozen=True)
class ExperimentPlace:
    """Keys shared by all runs of an experiment."""

    experiment: str

    def __post_init__(self) -> None:
        check_experiment_name(self.experiment)

    @property
    def reconciled_artifacts(self) -> str:
        """Versions of the documents' files, shared by all runs."""
        return f"{self.experiment}/data/reconciled_artifacts"

    def prepared_data(self, encoded_data_dir: str) -> str:
        """Encoded data sets of this name, one folder a version."""
        return f"{self.experiment}/data/prepared_data/{encoded_data_dir}"

    def run(self, number: int) -> "RunPlace":
        """The place of one run."""
        return RunPlace(self.experiment, number)


@dataclass(frozen=True)
class RunPlace:
    """Keys of one run."""

    experiment: str
    number: int

    def __post_init__(self) -> None:
        check_experiment_name(self.experiment)
        if self.number < 1:
            raise BadName(f"run {self.number} of {self.experiment}: run numbers start at 1")

    @property
    def root(self) -> str:
        """The run's folder."""
        return f"{self.experiment}/run_{self.number}"

    @property
    def shared(self) -> ExperimentPlace:
        """What the run shares with the experiment's others."""
        return ExperimentPlace(self.experiment)

    @property
    def snapshot(self) -> str:
        """The folder of experiment_snapshot."""
        return f"{self.root}/experiment"

    @property
    def claim(self) -> str:
        """The object whose creation made the run."""
        return f"{self.snapshot}/{CLAIM}"

    @property
    def reconciliation(self) -> str:
        """The folder of reconciled_data."""
        return f"{self.root}/reconciliation"

    @property
    def labels(self) -> str:
        """The folder of label_counts."""
        return f"{self.root}/labels"

    @property
    def preparation(self) -> str:
        """The folder that says which prepared data the run uses."""
        return f"{self.root}/preparation"

    def trained(self, model: str, *, tuned: bool) -> str:
        """Where a trained (or, from a tuning, the best) model lies."""
        return f"{self.root}/{'tuning' if tuned else 'training'}/{check_model_name(model)}"

    def seeded(self, model: str, seed: int) -> str:
        """Where the model lies that was trained with one of several seeds; the one that was chosen lies in `trained`, too."""
        return f"{self.trained(model, tuned=False)}/seed-{seed}"

    def part(self, model: str, divisor: int, index: int) -> str:
        """Where the answers lie of a model that was trained on a part of the train documents, for its learning curve."""
        return f"{self.trained(model, tuned=False)}/part-{index + 1}-of-{divisor}"

    def checkpoints(self, model: str, spec_hash: str) -> str:
        """Keyed by spec, not by job: a second attempt finds the first one's checkpoints."""
        return f"{self.root}/checkpoints/{check_model_name(model)}/{spec_hash[:16]}"

    @property
    def encoded_parts(self) -> str:
        """Below which a preparation's jobs keep what they have encoded, until the prepared data are published. No model has this name."""
        return f"{self.root}/checkpoints/_encoded_parts"

    @property
    def inference(self) -> str:
        """The folder of inference_report."""
        return f"{self.root}/inference"

    def deployment(self, model: str) -> str:
        """Where everything lies that an answer of the model needs."""
        return f"{self.root}/deployment/{check_model_name(model)}"

    @property
    def predictions(self) -> str:
        """The folder of prediction sets."""
        return f"{self.root}/predictions"

    def prediction(self, identity: str) -> str:
        """Where the predictions of one set of documents lie."""
        return f"{self.predictions}/{identity}"

    def finished_parts(self, identity: str) -> str:
        """Where a prediction's job keeps what is finished, until the predictions are published."""
        return f"{self.prediction(identity)}/{FINISHED_PARTS}"

    @property
    def jobs(self) -> str:
        """The folder of the jobs' records and staged outputs."""
        return f"{self.root}/jobs"

    def job_record(self, name: str) -> str:
        """The job's intent record."""
        return f"{self.jobs}/{name}.json"

    def job_lease(self, name: str) -> str:
        """The lease of whoever waits for the job."""
        return f"{self.jobs}/{name}.lease.json"

    def job_folder(self, name: str) -> str:
        """Where a job's `spec/` channel and staged `output/` lie until they are published."""
        return f"{self.jobs}/{name}"


# Top-level folder that lists the jobs which somebody asked for and whose end nobody has seen; no experiment can have this name.
ACTIVE_JOBS = "_active_jobs"
# What a folder store is called, at whatever path it is mounted.
STORE_IDENTITY = "_store.json"

# SageMaker's limits: 63 characters for training and processing jobs, 32 for tuning jobs.
MAX_JOB_NAME = {"processing": 63, "training": 63, "tuning": 32}


def job_name(kind: str, store: str, experiment: str, run: int, step: str, model: str | None, attempt: int) -> str:
    """The one job name of (store, experiment, run, step, model, attempt).

    Derived, so that whoever wants the same work finds the same job: names are SageMaker's only idempotency key.
    A readable head and a 10-digit hash of everything, cut to the kind's limit; matches
    `[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}`.
    """
    identity = "\0".join([store, experiment, str(run), step, model or "", str(attempt)])
    tail = f"{hashlib.sha256(identity.encode()).hexdigest()[:10]}-{attempt}"
    words = [experiment, f"r{run}", step, *([model] if model else [])]
    head = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(words)).strip("-")
    room = MAX_JOB_NAME[kind] - len(tail) - 1
    return f"{head[:room].strip('-')}-{tail}"
