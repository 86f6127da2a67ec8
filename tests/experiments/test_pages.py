"""Documents of one to twelve pages, `page_*.png`, from production to the report; a page more is a new version of its document only."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
DOCML = [sys.executable, "-c", "from docml_assets.cli import main; main()"]
EXPERIMENT = "EXP-8-pages"
LABELS = ("dark", "light")
SIDE = 16
SETTINGS = """\
[settings]
MODEL_NAMES = pages
LABELS_QUERY = SELECT artifact_guid, label, file_hash FROM labels
FILES_FROM_PROD = page_*.png, notes.txt
FILES_OPTIONAL = notes.txt
MODEL_INPUT_FILES = page_*.png, notes.txt
SPLIT = 0.6, 0.2, 0.2

[hyperparameters]
epochs = 3
learning_rate = 0.02
train_batch_size = 8
"""
FUNCTIONS = """\
def get_dataset_features(context):
    import datasets

    return datasets.Features(
        {
            "pixel_values": datasets.Array4D((None, 3, 16, 16), "uint8"),
            "num_pages": datasets.Value("int32"),
            "has_notes": datasets.Value("bool"),
        }
    )


def encode_data(instance, context):
    import numpy as np
    from PIL import Image

    pages = [np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path in instance["page_*.png"]]
    return {"pixel_values": np.stack(pages), "num_pages": len(pages), "has_notes": instance["notes.txt"] is not None}


def load_model(model_name, context):
    import torch

    class Pages(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.look = torch.nn.Conv2d(3, 8, 4, stride=4)
            self.classifier = torch.nn.Linear(8, context.num_labels)

        def forward(self, pixel_values, num_pages, has_notes=None):
            assert pixel_values.dtype == torch.uint8
            documents, pages = pixel_values.shape[:2]
            real = (torch.arange(pages, device=num_pages.device) < num_pages.unsqueeze(1)).unsqueeze(2)
            seen = torch.relu(self.look(pixel_values.flatten(0, 1).float() / 255)).mean(dim=(2, 3))
            seen = seen.unflatten(0, (documents, pages)) * real
            return {"logits": self.classifier(seen.sum(dim=1) / real.sum(dim=1))}

    return Pages()


def ordered_input_keys(model_name, context):
    return ["pixel_values", "num_pages"]
"""


class Here:
    """A folder with production, labels, one experiment, a store and a Dagster home."""

    def __init__(self, root: Path, documents: int) -> None:
        self.root = root
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("DOCML_", "DAGSTER_"))},
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'trainer_image'}",
            "OMP_NUM_THREADS": "1",
            "DOCML_PRODUCTION_FILES": str(root / "production"),
            "DOCML_LABELS_URL": f"sqlite:///{root / 'labels.sqlite'}",
        }
        with closing(sqlite3.connect(root / "labels.sqlite")) as database, database:
            database.execute("CREATE TABLE labels (artifact_guid TEXT, label TEXT, file_hash TEXT)")
            for index in range(documents):
                guid, label = f"doc-{index:03d}", LABELS[index % 2]
                database.execute("INSERT INTO labels VALUES (?, ?, ?)", (guid, label, f"hash-{index}"))
                for page in range(1, 2 + index % 12):
                    self.add_page(guid, page)
                if index % 3 == 0:
                    (root / f"production/{guid}/notes.txt").write_text("seen by the back office")
        database.close()
        folder = root / "experiments" / EXPERIMENT
        folder.mkdir(parents=True)
        (folder / "settings.ini").write_text(SETTINGS)
        (folder / "user_defined_funcs.py").write_text(FUNCTIONS)

    def add_page(self, guid: str, page: int) -> None:
        """A page as bright as the document's label says, with its number in the first pixel."""
        index = int(guid.removeprefix("doc-"))
        pixels = np.random.default_rng([index, page]).integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels += np.uint8(130 * (index % 2))
        pixels[0, 0, 0] = page
        path = self.root / f"production/{guid}/page_{page}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def docml(self, *arguments: str) -> str:
        done = subprocess.run(
            [*DOCML, *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def run_folder(self, run: int) -> Path:
        return self.root / f"storage/{EXPERIMENT}/run_{run}"

    def versions(self, run: int) -> dict[str, str]:
        """The version of every document that a run works with."""
        table = pq.read_table(self.run_folder(run) / "reconciliation/reconciled_manifest.parquet")
        pairs = zip(table["artifact_guid"].to_pylist(), table["key"].to_pylist(), strict=True)
        return {guid: key.split("/")[-2] for guid, key in pairs}

    def rows(self, run: int) -> Iterator[tuple[str, str, dict]]:
        """(GUID, split, row) of every document that a run has encoded."""
        folder = json.loads((self.run_folder(run) / "preparation/prepared.json").read_text())["folder"]
        for split in ("train", "valid", "test"):
            data = datasets.load_from_disk(str(self.root / "storage" / folder / split)).with_format("numpy")
            assert data.features["pixel_values"].dtype == "uint8"
            for row in data:
                yield str(row["artifact_guid"]), split, row


@pytest.mark.parametrize("documents", [36, pytest.param(300, marks=pytest.mark.slow)])
def test_pages_from_production_to_the_report(tmp_path: Path, documents: int) -> None:
    here = Here(tmp_path, documents)
    here.docml("run", EXPERIMENT)
    report = json.loads((here.run_folder(1) / "inference/report.json").read_text())
    assert report["models"]["pages"]["f1_macro"] > 0.9, "the brightness of the pages tells the label"
    before = {guid: (split, row) for guid, split, row in here.rows(1)}
    assert len(before) == documents
    for guid, (_, row) in before.items():
        index = int(guid.removeprefix("doc-"))
        assert row["pixel_values"][:, 0, 0, 0].tolist() == list(range(1, 2 + index % 12)), "in natural order"
        assert bool(row["has_notes"]) == (index % 3 == 0)

    here.add_page("doc-011", 13)
    here.docml("run", EXPERIMENT, "--next", "--steps", "reconciliation,preparation")
    first, second = here.versions(1), here.versions(2)
    assert {guid for guid in second if first[guid] != second[guid]} == {"doc-011"}
    for guid, split, row in here.rows(2):
        assert split == before[guid][0], "nobody changes sides"
        pages = 13 if guid == "doc-011" else len(before[guid][1]["pixel_values"])
        assert row["pixel_values"][:, 0, 0, 0].tolist() == list(range(1, pages + 1))
