"""MiniLM, fine-tuned through docml on the bundled documents: macro-F1 on the test split, mean of three seeds.

The bundled experiment's own code with six epochs in place of the demo's three. One peer: TF-IDF and logistic regression, trained on
the train and valid documents of the same split. The target, .80, is absolute. Takes about 8 minutes on two cores.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXPERIMENT = "EXP-1-state-of-the-union"
SOURCE = Path(__file__).resolve().parents[1] / "experiments" / EXPERIMENT
SEEDS = (13, 14, 15)
EPOCHS = 6


def run() -> list[dict[str, Any]]:
    """Three runs of one experiment, which share the prepared data."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
        folder = Path(scratch)
        reports = [_report(folder, number, seed) for number, seed in enumerate(SEEDS, start=1)]
        peer = _baseline(folder)
    scores = [float(report["models"]["minilm"]["f1_macro"]) for report in reports]
    print(f"macro-F1 by seed: {scores}")
    peers = {"TF-IDF + logistic regression": round(peer, 4)}
    return [
        _row("macro-F1, mean of three seeds (target .80)", "macro-F1", round(statistics.mean(scores), 4), peers),
        _row("macro-F1, lowest of three seeds", "macro-F1", round(min(scores), 4), peers),
        _row("three runs, from documents to reports (limit 900)", "s", round(time.monotonic() - started), {}),
    ]


def _row(metric: str, unit: str, ours: float, peers: dict[str, float]) -> dict[str, Any]:
    return {"bench": "minilm", "metric": metric, "unit": unit, "ours": ours, "peers": peers, "ratio": None}


def _report(folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Run `number` of the experiment with `seed`; its report.json."""
    experiment = folder / "experiments" / EXPERIMENT
    if not experiment.exists():
        shutil.copytree(SOURCE, experiment, ignore=shutil.ignore_patterns("__pycache__"))
    settings = (SOURCE / "settings.ini").read_text(encoding="utf-8")
    for old, new in {
        "RUN_NUM = 1": f"RUN_NUM = {number}",
        "MODEL_NAMES = minilm, bag-of-words": "MODEL_NAMES = minilm",
        "epochs = 3": f"epochs = {EPOCHS}",
        "seed = 13": f"seed = {seed}",
    }.items():
        if old not in settings:
            raise ValueError(f"{SOURCE / 'settings.ini'}: expected the line {old!r}, which this benchmark replaces")
        settings = settings.replace(f"\n{old}\n", f"\n{new}\n")
    (experiment / "settings.ini").write_text(settings, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DOCML_", "DAGSTER_"))}
    environment |= {
        "DOCML_EXPERIMENTS": str(folder / "experiments"),
        "DOCML_STORE": str(folder / "storage"),
        "DAGSTER_HOME": str(folder / "dagster_home"),
    }
    command = [str(Path(sys.executable).parent / "docml"), "run", EXPERIMENT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    path = folder / "storage" / EXPERIMENT / f"run_{number}" / "inference" / "report.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def _baseline(folder: Path) -> float:
    """TF-IDF and logistic regression on the same split."""
    import polars as pl
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline

    from docml_assets.sample import PRODUCTION_FILES

    (table,) = (folder / "storage" / EXPERIMENT / "data" / "prepared_data").rglob("splits.parquet")
    splits = pl.read_parquet(table)

    def documents(test: bool) -> tuple[list[str], list[str]]:
        rows = splits.filter((pl.col("split") == "test") == test)
        files = [PRODUCTION_FILES / guid / "raw_text.json" for guid in rows["artifact_guid"]]
        return [json.loads(file.read_text(encoding="utf-8"))["text"] for file in files], rows["label"].to_list()

    texts, labels = documents(test=False)
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2), LogisticRegression(C=10, max_iter=1000))
    model.fit(texts, labels)
    texts, labels = documents(test=True)
    return float(f1_score(labels, model.predict(texts), average="macro", zero_division=0))


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
