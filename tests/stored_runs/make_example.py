"""Makes example.tar.xz and expected.json: what the version before left behind, for `test_stored_runs`.

    git worktree add ../before cbb8c83 && make -C ../before .venv/.dev
    ../before/.venv/bin/python tests/stored_runs/make_example.py /srv/docml-example

It calls nothing but that version's command line, so that it does not depend on where modules lie. Three dozen small documents, two
models of a few hundred weights, and three finished runs of one experiment:

    1  everything: reconciliation with process_func, preparation, a comparison of two models, inference
    2  --next with RUN_TUNING: reconciled again, run 1's prepared data, a grid of two trials per model (each of cbb8c83's searches
       failed at its end and completed at the second attempt), inference
    3  --next with other epochs, RUN_RECONCILIATION and RUN_PREPARATION off: takes run 2's data, trains, inference

The folder's path enters names of jobs and files that libraries write: take one that says nothing about the machine.
"""

import hashlib
import io
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPERIMENT = "EXP-12-stored"
DOCML = [sys.executable, "-c", "from docml_assets.cli import main; main()"]
WORDS = {
    "invoice": "amount due total tax pay account number bank date sum net gross",
    "letter": "dear regards sincerely hope write answer family visit soon wishes kind yours",
}
SETTINGS = """\
[settings]
RUN_NUM = 1
RUN_RECONCILIATION = true
RUN_PREPARATION = true
RUN_TRAINING = true
RUN_TUNING = false
MODEL_NAMES = narrow, wide
LABELS_QUERY = SELECT artifact_guid, label, file_hash, customer FROM documents
FILES_FROM_PROD = raw_text.json
FILES_ON_RESEARCH = raw_text.json, words.json
MODEL_INPUT_FILES = words.json
IGNORED_LABELS = form
SPLIT = 0.5, 0.25, 0.25
SPLIT_BY = customer
MAX_JOBS = 2
TUNING_STRATEGY = Grid

[hyperparameters]
epochs = 2
learning_rate = 0.05
train_batch_size = 8
max_words = 30

[tunable]
learning_rate = 0.01, 0.1
"""
FUNCTIONS = '''\
"""A document is the average of its words' vectors."""

import json
import zlib

PADDING = {"words": 0}
BUCKETS = 61


def process_func(artifact, directory):
    text = json.loads((directory / "raw_text.json").read_text())["text"]
    (directory / "words.json").write_text(json.dumps(text.split()))


def get_dataset_features(context):
    from datasets import Features, List, Value

    return Features({"words": List(Value("uint16"))})


def encode_data(instance, context):
    words = json.loads(instance["words.json"].read_text())
    ids = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in words]
    return {"words": ids[: context.hyperparameters["max_words"]], "untruncated_length": len(ids)}


def load_model(model_name, context):
    import torch

    width = {"narrow": 2, "wide": 4}[model_name]

    class AveragedWords(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vectors = torch.nn.Embedding(BUCKETS, width, padding_idx=0)
            self.classifier = torch.nn.Linear(width, context.num_labels)

        def forward(self, words):
            count = (words != 0).sum(dim=1, keepdim=True).clamp(min=1)
            return {"logits": self.classifier(self.vectors(words).sum(dim=1) / count)}

    return AveragedWords()


def ordered_input_keys(model_name, context):
    return ["words"]
'''


# Charts with next to nothing on them: they would be nine tenths of the archive.
MATPLOTLIBRC = """\
font.size: 1
axes.edgecolor: white
axes.prop_cycle: cycler(color=["white"])
grid.color: white
lines.antialiased: False
patch.antialiased: False
text.color: white
axes.labelcolor: white
xtick.color: white
ytick.color: white
"""


class Example:
    """A folder with production documents, a label database, an experiment and its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCML_", "DAGSTER_"))}
        self.environment = {
            **kept,
            "HOME": str(folder / "home"),
            "LOGNAME": "someone",
            "OMP_NUM_THREADS": "1",
            "DOCML_LABELS_URL": f"sqlite:///{folder}/labels.sqlite",
            "DOCML_PRODUCTION_FILES": str(folder / "production"),
        }
        self.settings = folder / "experiments" / EXPERIMENT / "settings.ini"

    def write_documents(self) -> None:
        """Three dozen documents, three a customer; one is another's duplicate, one has a label that is left out."""
        chosen = random.Random(12)
        with closing(sqlite3.connect(self.folder / "labels.sqlite")) as database, database:
            database.execute("CREATE TABLE documents (artifact_guid TEXT, label TEXT, file_hash TEXT, customer TEXT)")
            for number in range(36):
                guid, label = f"document-{number:02d}", ("form" if number == 35 else ("invoice", "letter")[number % 2])
                words = " ".join(WORDS.values()).split() if label == "form" else WORDS[label].split()
                text = " ".join(chosen.choices(words, k=20) + chosen.choices(" ".join(WORDS.values()).split(), k=20))
                path = self.folder / "production" / guid / "raw_text.json"
                path.parent.mkdir(parents=True)
                path.write_text(json.dumps({"text": text}))
                content = "document-02" if number == 34 else guid
                row = (guid, label, hashlib.sha256(content.encode()).hexdigest(), f"customer-{number // 3:02d}")
                database.execute("INSERT INTO documents VALUES (?, ?, ?, ?)", row)
        database.close()

    def write_experiment(self) -> None:
        charts = self.folder / "home/.config/matplotlib/matplotlibrc"
        charts.parent.mkdir(parents=True)
        charts.write_text(MATPLOTLIBRC)
        self.settings.parent.mkdir(parents=True)
        self.settings.write_text(SETTINGS)
        self.settings.with_name("user_defined_funcs.py").write_text(FUNCTIONS)

    def set(self, **values: str) -> None:
        text = self.settings.read_text()
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
            assert count == 1, key
        self.settings.write_text(text)

    def docml(self, *arguments: str) -> None:
        subprocess.run([*DOCML, *arguments], cwd=self.folder, env=self.environment, check=True)

    def archive(self, target: Path) -> None:
        """The folder in a fixed order and without owners; Dagster's home and checkpoints, which no finished run needs, stay behind."""
        with tarfile.open(target, "w:xz", preset=9) as archive:
            for part in ("experiments", "production", "labels.sqlite", "storage"):
                for path in sorted([self.folder / part, *(self.folder / part).rglob("*")]):
                    if path.is_file() and "checkpoints" not in path.parts:
                        data = path.read_bytes()
                        member = tarfile.TarInfo(path.relative_to(self.folder).as_posix())
                        member.size, member.mtime = len(data), int(path.stat().st_mtime)
                        archive.addfile(member, io.BytesIO(data))

    def expected(self) -> dict[str, Any]:
        """What a later version must find unchanged."""
        storage = self.folder / "storage"
        assert not list(storage.glob("_active_jobs/*")), "a job has not ended"
        manifests = {}
        for path in sorted(path for path in storage.rglob("MANIFEST.json") if "checkpoints" not in path.parts):
            manifest = json.loads(path.read_text())
            shown = ("asset", "run", "cache_key", "data_version", "inputs", "code_version")
            manifests[path.parent.relative_to(storage).as_posix()] = {key: manifest[key] for key in shown}
        records = [json.loads(path.read_text()) for path in sorted(storage.glob("*/run_*/jobs/*.json"))]
        jobs = [
            {
                "name": record["name"],
                **{key: record["spec"][key] for key in ("kind", "run", "step", "model")},
                "attempt": record["attempt"],
                "status": record["status"],
                "spec_hash": record["spec_hash"],
            }
            for record in records
            if "spec" in record
        ]
        reports = {path.parents[1].name: json.loads(path.read_text()) for path in storage.rglob("report.json")}
        return {
            "store": storage.as_uri(),
            "manifests": manifests,
            "jobs": jobs,
            "macro_f1": {
                run: {name: model["f1_macro"] for name, model in report["models"].items()}
                for run, report in sorted(reports.items())
            },
        }


def main(folder: str) -> None:
    example = Example(Path(folder).resolve())
    example.write_documents()
    example.write_experiment()
    example.docml("run", EXPERIMENT)
    example.set(RUN_TRAINING="false", RUN_TUNING="true", RUN_NUM="2")
    example.docml("run", EXPERIMENT, "--next")
    example.set(RUN_TRAINING="true", RUN_TUNING="false", RUN_NUM="3", epochs="3")
    example.set(RUN_RECONCILIATION="false", RUN_PREPARATION="false")
    example.docml("run", EXPERIMENT, "--next")
    example.archive(HERE / "example.tar.xz")
    (HERE / "expected.json").write_text(json.dumps(example.expected(), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
