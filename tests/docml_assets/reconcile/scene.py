"""A production to reconcile with: a label database, a store of files, and a run, all real."""

import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_assets.experiment.use_case import UseCase
from docml_assets.reconcile import copies
from docml_assets.reconcile.reconciliation import ReconciledArtifacts, ReconciliationInputs, reconcile
from docml_contract.names import RunPlace
from resources.labels import LabelSource
from resources.store import Store

EXPERIMENT = "EXP-1"
BASE = f"{EXPERIMENT}/data/reconciled_artifacts"
QUERY = "SELECT artifact_guid, label, file_hash, site FROM labels"
# What the other functions look like does not matter to reconciliation.
OTHERS = """
def get_dataset_features(context): return None
def encode_data(instance, context): return {}
def load_model(model_name, context): return None
def ordered_input_keys(model_name, context): return ["input_ids"]
"""
PROCESS = """
import json

def process_func(artifact, directory):
    text = json.loads((directory / "raw_text.json").read_text())["text"]
    (directory / "words.txt").write_text(artifact["label"] + ":" + " ".join(text.split()[:3]))
"""

Row = tuple[Any, Any, Any, Any]


@dataclass
class Scene:
    """`run(n)` reconciles run n; `said` is its log."""

    folder: Path
    production: Store
    store: Store
    labels: LabelSource
    environment: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    query: str = QUERY
    use_case: UseCase | None = None

    def settings(self, **keys: Any) -> Settings:
        files = {"FILES_FROM_PROD": "raw_text.json", "MODEL_INPUT_FILES": "raw_text.json", **keys}
        lines = [
            f"{key} = {value}" for key, value in {"LABELS_QUERY": self.query, "MODEL_NAMES": "tiny", **files}.items()
        ]
        return parse_settings("[settings]\n" + "\n".join(lines) + "\n", "settings.ini")

    def run(self, number: int = 1, functions: str = "", **keys: Any) -> ReconciledArtifacts:
        return reconcile(
            ReconciliationInputs(
                place=RunPlace(EXPERIMENT, number),
                settings=self.settings(**keys),
                functions_source=functions + OTHERS,
                store=self.store,
                production=self.production,
                labels=self.labels,
                environment={"PATH": os.environ["PATH"], **self.environment},
                log=self.said.append,
                progress=lambda *event: self.progress.append(event),
                use_case=self.use_case,
            )
        )

    def artifact(self, guid: str, **files: bytes) -> None:
        """Put an artifact's files into production; names with `__` for the dot."""
        for name, data in ({"raw_text__json": document(guid)} | files).items():
            self.production.put(f"{guid}/{name.replace('__', '.')}", data)

    def state(self) -> dict[str, bytes]:
        """What lies below the reconciled artifacts."""
        return {stored.key.removeprefix(f"{BASE}/"): self.store.get(stored.key) for stored in self.store.list(BASE)}


def document(guid: str) -> bytes:
    return json.dumps({"artifact_guid": guid, "text": f"the text of {guid}"}).encode()


def guids(count: int) -> list[str]:
    return [f"{i * 2654435761 % 2**32:08x}-doc" for i in range(count)]


def label_database(path: Path, rows: Iterable[Row]) -> LabelSource:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE IF EXISTS labels")
    connection.execute("CREATE TABLE labels (artifact_guid, label, file_hash, site)")
    # A label given as bytes becomes text that is not UTF-8.
    label = "CASE typeof(?2) WHEN 'blob' THEN CAST(?2 AS TEXT) ELSE ?2 END"
    connection.executemany(f"INSERT INTO labels VALUES (?1, {label}, ?3, ?4)", rows)
    connection.commit()
    connection.close()
    return LabelSource(f"sqlite:///{path}", {})


def build(
    folder: Path,
    rows: Iterable[Row],
    *,
    production: str = "",
    store: str = "",
    environment: Mapping[str, str] | None = None,
) -> Scene:
    """A scene in a folder, its stores elsewhere if URLs are given."""
    folder.mkdir(exist_ok=True)
    settings = dict(environment or {})
    return Scene(
        folder,
        Store.open(production or str(folder / "production"), environment=settings),
        Store.open(store or str(folder / "store"), environment=settings),
        label_database(folder / "labels.db", rows),
        environment=settings,
    )


def main() -> None:
    """Reconcile in a process of its own that a test can kill: arguments as JSON, progress on stdout."""
    copies.BAR_SECONDS = 0.0  # every unit is heard of
    said = json.loads(sys.argv[1])
    scene = Scene(
        Path(said["folder"]),
        Store.open(said["production"], environment=said["environment"]),
        Store.open(said["store"], environment=said["environment"]),
        LabelSource(f"sqlite:///{said['folder']}/labels.db", {}),
        environment=said["environment"],
    )
    scene.progress = _Printing()  # type: ignore[assignment]
    result = scene.run(functions=PROCESS, FILES_ON_RESEARCH="raw_text.json, words.txt")
    print(json.dumps({"data_version": result.data_version, **result.funnel}), flush=True)


class _Printing:
    def append(self, event: tuple[str, int, int]) -> None:
        print(*event, flush=True)


if __name__ == "__main__":
    main()
