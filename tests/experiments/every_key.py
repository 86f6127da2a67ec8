"""Every optional key of docs/settings.md: the run in which it is switched on (RUNS), its value there, and what it did.

Six whole runs of tiny models on this machine, whose other settings stand in PLANS.
"""

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
from safetensors import safe_open

from tests.docml_assets.sensors.ticking import Daemon

FUNCTIONS = r"""
import json
import os
import zlib

WORDS = 500


def process_func(artifact, directory):
    text = (directory / "text.txt").read_text()
    if "PROCESSFAILS" in text:
        raise ValueError("no words today")
    (directory / "words.json").write_text(json.dumps({"words": text.split(), "process": os.getpid()}))


def get_dataset_features(context):
    from datasets import Features, List, Value

    return Features({"input_ids": List(Value("int32"))})


def encode_data(instance, context):
    words = instance["text.txt"].read_text().split()
    if "ENCODEFAILS" in words:
        raise ValueError("this document is a riddle")
    return {"input_ids": [5 + zlib.crc32(word.encode()) % (WORDS - 5) for word in words][: context.hyperparameters["max_length"]]}


def load_model(model_name, context):
    import torch
    import transformers

    values = context.hyperparameters
    width = int(values.get("width", 16))
    config = transformers.BertConfig(vocab_size=WORDS, hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=16, max_position_embeddings=64, num_labels=context.num_labels)
    model = transformers.BertForSequenceClassification(config).to(torch.bfloat16)
    print(f"score={values['learning_rate']}")
    print(f"width {width}")

    def look(module, arguments, inputs):
        if not torch.jit.is_tracing():
            kind = "training" if module.training else "validation"
            print(f"{kind} batch of {len(inputs['input_ids'])}, checkpointing {module.is_activation_checkpointing}")

    model.register_forward_pre_hook(look, with_kwargs=True)
    return model


def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask"]
"""


class Run:
    """A finished run, and what it left."""

    def __init__(self, experiment: Path, number: int, said: str, refused: str = "") -> None:
        self.folder = experiment / f"run_{number}"
        self.said = said  # by docml run
        self.refused = refused  # what it said of a value that it had to refuse

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())

    @property
    def first(self) -> "Run":
        """The run `hyperparameters`, on the same documents, where everything else is as the defaults have it."""
        return Run(self.folder.parents[1] / PLANS["hyperparameters"].experiment, 1, "")

    def other(self, number: int) -> "Run":
        """Another run of the same experiment."""
        return Run(self.folder.parent, number, "")

    @cached_property
    def report(self) -> dict[str, Any]:
        return dict(self.json("inference/report.json"))

    @cached_property
    def prepared(self) -> Path:
        """The folder of the prepared data that the run used."""
        return self.folder.parents[1] / self.json("preparation/prepared.json")["folder"]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the preparation says of its data."""
        return dict(json.loads((self.prepared / "split_metadata.json").read_text()))

    @property
    def split_of(self) -> dict[str, str]:
        """The split of every document."""
        rows = pq.read_table(self.prepared / "splits.parquet").to_pylist()
        return {row["artifact_guid"]: row["split"] for row in rows}

    def files(self) -> dict[str, set[str]]:
        """The reconciled files of every document."""
        found: dict[str, set[str]] = {}
        for row in pq.read_table(self.folder / "reconciliation/reconciled_manifest.parquet").to_pylist():
            found.setdefault(row["artifact_guid"], set()).add(row["file"])
        return found

    def versions(self) -> set[str]:
        """Keys of the reconciled files, which name their documents' versions."""
        return set(pq.read_table(self.folder / "reconciliation/reconciled_manifest.parquet")["key"].to_pylist())

    def job(self, step: str) -> dict[str, Any]:
        """The spec of a step's job for the model `plain`, or for all."""
        records = [json.loads(path.read_text()) for path in self.folder.glob("jobs/*.json")]
        specs = [record["spec"] for record in records if "spec" in record]
        (spec,) = [spec for spec in specs if spec["step"] == step and spec["model"] in (None, "plain")]
        return dict(spec)

    def log(self, step: str, model: str) -> str:
        """What the jobs of a step and a model printed; the names of tuning jobs hold only a part of the model's."""
        records = {path: json.loads(path.read_text()) for path in sorted(self.folder.glob("jobs/*.json"))}
        mine = [path for path, found in records.items() if "spec" in found and found["spec"]["model"] == model]
        return "".join(path.with_suffix(".log").read_text() for path in mine if records[path]["spec"]["step"] == step)

    def compute(self, step: str) -> dict[str, Any]:
        """The machines that a step's job asked for. Here they have neither type, disk nor price: that they were asked for is all to see."""
        return dict(self.job(step)["compute"])

    def frozen(self) -> dict[str, Any]:
        return dict(self.json("experiment/settings.json"))

    def history(self, model: str) -> list[dict[str, Any]]:
        return list(self.json(f"training/{model}/history.json"))

    def card(self, model: str = "plain") -> dict[str, Any]:
        return dict(self.json(f"training/{model}/statistics.json"))

    def weights(self, model: str) -> bytes:
        return (self.folder / f"training/{model}/model.safetensors").read_bytes()

    def trials(self, model: str = "plain") -> dict[str, Any]:
        return dict(self.json(f"tuning/{model}/trials.json"))


Check = Callable[[Run], object]
Keys = dict[str, tuple[str, Check]]


def seen_in_compute(step: str, field: str, value: Any) -> Check:
    return lambda run: run.compute(step)[field] == value


def machines(step: str) -> Keys:
    """The keys that every step has for its machines, with a value of its own each."""
    prefix, volume = step.upper(), 10 + len(step)
    return {
        f"{prefix}_INSTANCE_TYPE": ("ml.m5.2xlarge", seen_in_compute(step, "instance_type", "ml.m5.2xlarge")),
        f"{prefix}_VOLUME_GB": (str(volume), seen_in_compute(step, "volume_gb", volume)),
        f"{prefix}_MAX_RUNTIME_SECONDS": (str(600 + volume), seen_in_compute(step, "max_runtime_seconds", 600 + volume)),
    }  # fmt: skip


def model_of(hyperparameter: str) -> str:
    return hyperparameter.replace("_", "-")


def differs(hyperparameter: str) -> Check:
    """The weights of the model that has the hyperparameter differ from those of the one that lacks it, and its card names the value."""

    def check(run: Run) -> bool:
        name = model_of(hyperparameter)
        recorded = [run.card(model)["hyperparameters"][hyperparameter] for model in ("plain", name)]
        return run.weights(name) != run.weights("plain") and recorded[0] != recorded[1]

    return check


def dtypes(run: Run, model: str) -> set[str]:
    with safe_open(run.folder / f"training/{model}/model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def batches(run: Run, model: str, kind: str) -> int:
    """The largest batch of the first epoch."""
    first, _, _ = run.log("training", model).partition("Epoch 1/2")
    return max(map(int, re.findall(rf"{kind} batch of (\d+)", first)))


# Every hyperparameter of the training loop, each switched on for one model of a comparison; the further lines of that model, its effect.
HYPERPARAMETERS: dict[str, tuple[str, Check]] = {
    "epochs": ("1", lambda run: len(run.history("epochs")) == 1 and len(run.history("plain")) == 2),
    "learning_rate": ("0.003", differs("learning_rate")),
    "head_learning_rate": ("0.1", differs("head_learning_rate")),
    "train_batch_size": ("6", lambda run: batches(run, "train-batch-size", "training") == 6),
    "eval_batch_size": ("4", lambda run: batches(run, "eval-batch-size", "validation") == 4),
    "gradient_accumulation_steps": (
        "2",
        lambda run: (
            2 * len(run.history("gradient-accumulation-steps")[0]["step_losses"])
            == len(run.history("plain")[0]["step_losses"])
        ),
    ),
    "weight_decay": ("0.5", differs("weight_decay")),
    "warmup_ratio": ("0.5", differs("warmup_ratio")),
    "lr_scheduler": ("constant", lambda run: run.history("lr-scheduler")[-1]["learning_rate"] == 0.01),
    "max_grad_norm": ("0.01", differs("max_grad_norm")),
    "label_smoothing": ("0.3", differs("label_smoothing")),
    "class_weights": ("balanced", differs("class_weights")),
    "mixed_precision": ("bf16", lambda run: run.card("mixed-precision")["hardware"]["mixed_precision"] == "bf16"),
    "weights_dtype": (
        "as_loaded",
        lambda run: dtypes(run, "weights-dtype") == {"BF16"} and dtypes(run, "plain") == {"F32"},
    ),
    "seed": ("7", differs("seed")),
    "early_stopping_patience": (
        "1\nepochs = 6\nlearning_rate = 1e-12",
        lambda run: len(run.history("early-stopping-patience")) < 6,
    ),
    "checkpoint_every_steps": (
        "2",
        lambda run: checkpoint_steps(run, "checkpoint-every-steps") != checkpoint_steps(run, "plain"),
    ),
    "gradient_checkpointing": (
        "true",
        lambda run: (
            "checkpointing True" in run.log("training", "gradient-checkpointing")
            and "checkpointing True" not in run.log("training", "plain")
        ),
    ),
    # Ways to be quicker on a GPU: auto, their default, leaves them off here, and so does false.
    "compile": ("false", lambda run: run.card("compile")["hyperparameters"]["compile"] is False),
    "packing": ("false", lambda run: run.card("packing")["hyperparameters"]["packing"] is False),
}


def checkpoint_steps(run: Run, model: str) -> list[str]:
    """The two checkpoints that are left: without the key after the last two epochs."""
    return sorted(path.name for path in run.folder.glob(f"checkpoints/{model}/*/*/step-*"))


def overlap(run: Run) -> bool:
    """Whether a model's training started before the one before had ended."""
    states = [json.loads(path.read_text()) for path in run.folder.glob("jobs/*-training-*.state.json")]
    spans = sorted((state["started_at"], state["ended_at"]) for state in states)
    return any(later[0] < earlier[1] for earlier, later in pairwise(spans))


def customers(run: Run) -> bool:
    """Both documents of a customer are in one split."""
    split_of = run.split_of
    pairs = [(f"doc-{n:03d}", f"doc-{n + 1:03d}") for n in range(0, 60, 2)]
    return all(split_of[one] == split_of[other] for one, other in pairs if one in split_of and other in split_of)


RUNS: dict[str, Keys] = {
    "hyperparameters": {
        "COMPARISON_PARALLEL_JOBS": ("2", overlap),
        **HYPERPARAMETERS,
    },
    "data": {
        "MAX_LABEL_ROWS": ("68", lambda run: "more than MAX_LABEL_ROWS = 67 rows" in run.refused),
        "FILES_ON_RESEARCH": (
            "text.txt, notes.txt, words.json",
            lambda run: all("words.json" in files for files in run.files().values()),
        ),
        "FILES_OPTIONAL": (
            "notes.txt",
            lambda run: 0 < sum("notes.txt" in files for files in run.files().values()) < len(run.files()),
        ),
        "MAX_FAILED_SHARE": (
            "0.1",
            lambda run: run.json("reconciliation/findings.json")["funnel"]["failed"] == 1
            and len(run.metadata["failures"]) == 1,
        ),
        "RECONCILIATION_PROCESSES": ("1", lambda run: len(processes(run)) == 1),
        "PREPARATION_PROCESSES": ("3", lambda run: run.metadata["processes"] == 3),
        "ENCODED_DATA_DIR": ("partial", lambda run: run.prepared.parent.name == "partial"),
        "MAX_ARTIFACTS": ("48", lambda run: sum(run.metadata["dropped"]["over_max_artifacts"].values()) > 0
                          and len(run.split_of) <= 48),
        "USE_CASE": (
            "mapped",
            lambda run: "notice" in run.metadata["labels"]["train"] and "memo" not in run.metadata["labels"]["train"],
        ),
        "IGNORED_LABELS": ("unknown", lambda run: run.metadata["dropped"]["ignored_label"] == {"unknown": 3}),
        "NUM_LABELS_THRESHOLD": (
            "5",
            lambda run: run.metadata["dropped"]["below_num_labels_threshold"] == {"rare": 3},
        ),
        "NEAR_DUPLICATE_THRESHOLD": ("1", lambda run: [r.metadata["near_duplicates"]["groups"] for r in (run.first, run)] == [1, 0]),
        "BASELINE": (
            "false",
            lambda run: "none" in run.metadata["baseline"] and not (run.prepared / "baseline.parquet").exists(),
        ),
        "SPLIT": ("0.5, 0.25, 0.25", lambda run: len([s for s in run.split_of.values() if s == "test"]) > 8),
        "SPLIT_BY": ("customer", customers),
    },
    "again": {
        "OVERWRITE": ("true", lambda run: not run.versions() & run.other(1).versions()),
        "WORSE_THAN_PREVIOUS": ("block", lambda run: "is worse than" in run.said),
        "RERUN_ON_NEW_DATA": ("true", lambda run: len(restarted(run)) == 1),
        "INFERENCE_IN_TRAINING": ("false", lambda run: list(run.folder.glob("jobs/*-inference-*.json"))),
        "INFERENCE_SPEEDUP": ("auto", lambda run: "used" in run.card()["export"]["speedup"]),
        "SEEDS": (
            "13, 14",
            lambda run: [score["seed"] for score in run.report["seeds"]["plain"]["scores"]] == [13, 14]
            and len(list(run.folder.glob("training/plain/seed-1[34]/MANIFEST.json"))) == 2,
        ),
        "LEARNING_CURVE": (
            "true",
            lambda run: len(run.report["model_curve"]["points"]) == 2 + len(list(run.folder.glob("training/plain/part-*/MANIFEST.json"))),
        ),
    },
    "steps": {
        "RUN_NUM": ("8", lambda run: run.folder.name == "run_8"),
        "RUN_RECONCILIATION": ("false", lambda run: not run.versions() - run.other(2).versions()),
        "RUN_PREPARATION": ("false", lambda run: run.prepared == run.other(2).prepared),
        "RUN_TRAINING": ("false", lambda run: not list(run.folder.glob("jobs/*-training-*"))),
        "RUN_INFERENCE": ("false", lambda run: not (run.other(7).folder / "inference").exists()),
    },
    "machines": {
        "SPLIT_SEED": ("7", lambda run: run.split_of != run.first.split_of),
        "USE_DISTRIBUTED": ("true", lambda run: run.card()["hardware"]["processes"] > 1),
        "CPU_PROCESSES": ("2", lambda run: run.card()["hardware"]["processes"] == 2 * 2),
        **machines("preparation"),
        **machines("training"),
        **machines("inference"),
        "PREPARATION_INSTANCE_COUNT": ("2", lambda run: run.metadata["hosts"] == 2),
        "TRAINING_INSTANCE_COUNT": ("2", seen_in_compute("training", "instance_count", 2)),
        "INFERENCE_INSTANCE_COUNT": ("2", seen_in_compute("inference", "instance_count", 2)),
        "TRAINING_USE_SPOT": ("true", seen_in_compute("training", "use_spot", True)),
        "TRAINING_MAX_WAIT_SECONDS": ("3600", seen_in_compute("training", "max_wait_seconds", 3600)),
        "DOCKER_IMAGE": ("docml:own", lambda run: run.frozen()["docker_image"] == "docml:own"),
        "MAX_COST_USD": ("5", seen_in_compute("training", "max_cost_usd", 5.0)),
        "WANDB_MODE": ("offline", lambda run: list(run.folder.glob("training/plain/wandb/*/*.wandb"))),
        "WANDB_PROJECT": ("letters", lambda run: run.job("training")["task"]["tracking"]["project"] == "letters"),
        "WANDB_ENTITY": ("team", lambda run: run.job("training")["task"]["tracking"]["entity"] == "team"),
    },
    "tuning": {
        "RUN_TUNING": ("true", lambda run: run.trials()),
        "AUTO_ACCEPT_PRECISION": ("0.9", lambda run: run.report["policy"]["plain"]["policy"]["target"] == 0.9),
        "PREDICT_QUERY": (
            "SELECT artifact_guid FROM labels",
            lambda run: run.frozen()["predict_query"] == "SELECT artifact_guid FROM labels",
        ),
        "OBJECTIVE_METRIC_NAME": ("score", lambda run: run.trials()["objective_metric"] == "score"),
        "OBJECTIVE_TYPE": ("Minimize", lambda run: best(run)["objective"] == min(objectives(run))),
        "METRIC_DEFINITIONS": ('{"score": "^score=([0-9.eE+-]+)"}', lambda run: len(set(objectives(run))) == 3),
        "MAX_JOBS": ("3", lambda run: len(run.trials()["trials"]) == 3),
        "MAX_PARALLEL_JOBS": ("2", lambda run: run.job("tuning")["tuning"]["max_parallel_jobs"] == 2),
        "TUNING_STRATEGY": ("Random", lambda run: run.trials()["strategy"] == "Random"),
        "TRAINING_KEEP_ALIVE_SECONDS": ("600", lambda run: run.job("tuning")["compute"]["keep_alive_seconds"] == 600),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a run is made, beside the keys of RUNS. refused: a key, a value that makes `docml run` fail; fails: it ends with a failed check, after
    its report."""

    experiment: str
    number: int = 1
    settings: dict[str, str] = field(default_factory=dict)
    hyperparameters: dict[str, str] = field(default_factory=dict)
    sections: str = ""
    refused: tuple[str, str] | None = None
    fails: bool = False


_DATA = {
    "LABELS_QUERY": "SELECT * FROM labels",
    "FILES_FROM_PROD": "text.txt, notes.txt",
    **{key: value for key, (value, _) in RUNS["data"].items() if key != "MAX_LABEL_ROWS"},
}
PLANS = {
    "hyperparameters": Plan(
        "EXP-1",
        settings={"MODEL_NAMES": ", ".join(["plain", "twin", *map(model_of, HYPERPARAMETERS)])},
        sections="".join(f"[hyperparameters.{model_of(key)}]\n{key} = {value}\n" for key, (value, _) in HYPERPARAMETERS.items()),
    ),
    "data": Plan("EXP-2", settings=_DATA, refused=("MAX_LABEL_ROWS", "67")),
    "again": Plan("EXP-2", 2, settings=_DATA, hyperparameters={"learning_rate": "1e-12"}, fails=True),
    "steps": Plan("EXP-2", 8, settings=_DATA, hyperparameters={"seed": "99"}),
    "machines": Plan("EXP-3"),
    "tuning": Plan(
        "EXP-4",
        settings={"MODEL_NAMES": "plain, wide", "RUN_TRAINING": "false"},
        sections="[tunable]\nlearning_rate = 0.001 -> 0.01\n[hyperparameters.wide]\nwidth = 24\n"
        "[tunable.wide]\nlearning_rate = 0.02 -> 0.03\n",
    ),
}  # fmt: skip


def processes(run: Run) -> set[int]:
    """Those in which process_func ran."""
    keys = [key for key in run.versions() if key.endswith("/words.json")]
    return {json.loads((run.folder.parents[1] / key).read_text())["process"] for key in keys}


def restarted(run: Run) -> list[str]:
    """The partitions of the runs that the sensor starts after a label has changed."""
    root = run.folder.parents[2]
    with closing(sqlite3.connect(root / "labels.sqlite")) as database, database:
        database.execute("UPDATE labels SET label = 'memo' WHERE artifact_guid = 'doc-000'")
    environment = {
        "DOCML_STORE": str(root / "storage"),
        "DOCML_EXPERIMENTS": str(root / "experiments"),
        "DOCML_PRODUCTION_FILES": str(root / "production"),
        "DOCML_LABELS_URL": f"sqlite:///{root / 'labels.sqlite'}",
    }
    with dg.instance_for_test() as instance:
        daemon = Daemon("new_data_sensor", instance, environment)
        started = daemon.ticks(3)
    return [partition for partition in started if partition.startswith(run.folder.parent.name)]


def objectives(run: Run) -> list[float]:
    return [trial["objective"] for trial in run.trials()["trials"]]


def best(run: Run) -> dict[str, Any]:
    trials = run.trials()
    return dict(next(trial for trial in trials["trials"] if trial["number"] == trials["best"]))
