"""200 documents of one to twelve pages, each page a document of the model: from production to the report, docml predict, serve and deploy."""

import base64
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

from resources.endpoints.interface import endpoint_name
from tests.docml_assets.cli.test_endpoints import post
from tests.docml_assets.cli.test_predict import serving
from tests.experiments import test_pages
from tests.experiments.test_pages import EXPERIMENT, SIDE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
DOCUMENTS = 200


class Here(test_pages.Here):
    """As there, with pages of which one alone says little."""

    @property
    def experiment(self) -> str:
        return EXPERIMENT

    def add_page(self, guid: str, page: int) -> None:
        index = int(guid.removeprefix("doc-"))
        random = np.random.default_rng([index, page])
        brightness = 110 + 20 * (index % 2) + random.normal(0, 20)
        pixels = np.clip(random.normal(brightness, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        path = self.root / f"production/{guid}/page_{page:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    found = Here(tmp_path_factory.mktemp("units"), DOCUMENTS)
    settings = found.root / "experiments" / EXPERIMENT / "settings.ini"
    settings.write_text(settings.read_text().replace("[settings]\n", "[settings]\nUSE_CASE = pages\n"))
    assert "macro-F1" in found.docml("run", EXPERIMENT)
    return found


def table(here: Here, name: str) -> list[dict[str, object]]:
    (path,) = (here.root / f"storage/{EXPERIMENT}").glob(name)
    rows: list[dict[str, object]] = pq.read_table(path).to_pylist()
    return rows


def answers(here: Here) -> dict[str, dict[str, object]]:
    return {str(row["artifact_guid"]): row for row in table(here, "run_1/inference/predictions.parquet")}


def test_no_artifact_straddles_splits(here: Here) -> None:
    splits = defaultdict(set)
    rows = table(here, "data/prepared_data/*/*/splits.parquet")
    assert len(rows) == sum(1 + index % 12 for index in range(DOCUMENTS))
    for row in rows:
        splits[row["artifact_guid"]].add(row["split"])
    assert len(splits) == DOCUMENTS
    assert all(len(found) == 1 for found in splits.values())
    counts = [sum(found == {split} for found in splits.values()) for split in ("train", "valid", "test")]
    assert counts == [120, 40, 40]


def test_scores_of_documents_are_those_of_the_mean_over_their_pages(here: Here) -> None:
    pages = defaultdict(list)
    truth = {}
    for row in table(here, "run_1/inference/unit_predictions.parquet"):
        pages[row["artifact_guid"]].append(row["pages_probabilities"])
        truth[row["artifact_guid"]] = row["label"]
    report = json.loads((here.root / f"storage/{EXPERIMENT}/run_1/inference/report.json").read_text())
    labels = report["labels"]
    said = {guid: labels[int(np.mean(found, axis=0).argmax())] for guid, found in pages.items()}
    assert report["num_test"] == len(said) == 40
    assert {guid: row["pages_prediction"] for guid, row in answers(here).items()} == said
    right, given = [truth[guid] for guid in said], list(said.values())
    scores = report["models"]["pages"]
    assert scores["accuracy"] == pytest.approx(accuracy_score(right, given), abs=1e-12)
    assert scores["f1_macro"] == pytest.approx(f1_score(right, given, average="macro"), abs=1e-12)
    units = report["units"]
    assert units["num_test"] == sum(map(len, pages.values()))
    assert scores["accuracy"] > units["models"]["pages"]["accuracy"] > 0.5, "pages together say more than one alone"


def test_predict_and_serve_answer_about_documents_as_the_report_does(here: Here, tmp_path: Path) -> None:
    expected = answers(here)
    query = f"SELECT artifact_guid FROM labels WHERE artifact_guid IN ({', '.join(map(repr, expected))})"
    out = tmp_path / "answers.parquet"
    here.docml("predict", EXPERIMENT, "1", "--query", query, "--out", str(out))
    found = {row["artifact_guid"]: row for row in pq.read_table(out).to_pylist()}
    assert found.keys() == expected.keys()
    for guid, row in expected.items():
        assert found[guid]["prediction"] == row["pages_prediction"]
        assert found[guid]["probabilities"] == pytest.approx(row["pages_probabilities"], abs=1e-6)
    guid = max(expected)
    files = {
        path.name: {"base64": base64.b64encode(path.read_bytes()).decode()}
        for path in (here.root / "production" / guid).iterdir()
    }
    with serving(here, "pages") as url:  # type: ignore[arg-type]
        answer = json.loads(post(f"{url}/invocations", json.dumps({"artifact_guid": guid, "files": files}).encode()))
    assert answer["label"] == expected[guid]["pages_prediction"]
    assert list(answer["probabilities"].values()) == pytest.approx(expected[guid]["pages_probabilities"], abs=1e-4)
    assert [unit["unit"] for unit in answer["units"]] == sorted(
        name.removesuffix(".png") for name in files if name.startswith("page")
    )


def test_an_endpoint_answers_about_documents_as_the_report_does(here: Here) -> None:
    assert ": up" in here.docml("deploy", EXPERIMENT, "1"), "one that answers otherwise is taken down"
    here.docml("undeploy", endpoint_name(1, EXPERIMENT, "pages"))
