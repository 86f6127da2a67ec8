"""The training loop on a GPU against the Hugging Face Trainer: tokens a second, padding not counted, and the model FLOP utilisation of ours.

BERT-base (110 M parameters, randomly initialized), 64 documents a step, bf16 and fused AdamW for both; ours packed and compiled, the
Trainer grouping by length. Documents of 512 tokens, and documents of 16 to 512. Medians of three pairs; of each training the second
epoch counts, the first warms up and compiles. Model FLOPs a token: 6 for each parameter that multiplies (all but the embeddings), and
12 × layers × width × length for attention (the accounting of the PaLM paper, appendix B); utilisation is their share of the GPU's dense
bf16 peak. Without a GPU there is nothing to measure, and no row.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers

from bench import training as loop
from docml_trainer.data.datasets import document_lengths

# Dense bf16 FLOP/s, from the vendor's data sheets; the first name that is part of the device's name counts.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "L4": 121e12, "T4": 65e12}
LAYERS, WIDTH, LENGTH, DOCUMENTS, BATCH, PAIRS = 12, 768, 512, 6400, 64, 3
SIZE = {"epochs": 2, "documents": DOCUMENTS, "layers": LAYERS}
OURS = {"mixed_precision": "bf16", "packing": True, "compile": True}
# Parameters: four projections of attention, and two of the feed-forward layer, which is four times as wide.
MULTIPLYING = 12 * LAYERS * WIDTH**2

FUNCTIONS = f"""
def load_model(model_name, context):
    import transformers
    config = transformers.BertConfig(num_hidden_layers={LAYERS}, hidden_size={WIDTH}, num_labels=context.num_labels)
    config._attn_implementation = "sdpa"
    return transformers.BertForSequenceClassification(config)

def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask"]
"""


def run() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        print("No GPU: nothing is measured.")
        return []
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    uniform = random_documents(np.full(DOCUMENTS, LENGTH))
    varied = random_documents(varied_lengths(2 * DOCUMENTS))
    return [*rows_of(f"BERT-base, {LENGTH} tokens", uniform), *rows_of("BERT-base, 16 to 512 tokens", varied)]


def rows_of(metric: str, documents: datasets.Dataset) -> list[dict[str, Any]]:
    """Tokens a second of both, and the share of the peak that ours reaches."""
    pairs = [(our_rate(documents), their_rate(documents)) for _ in range(PAIRS)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    name = torch.cuda.get_device_name()
    print(f"{metric}, {name}: pairs, tokens a second (ours, Trainer): {[(round(a), round(b)) for a, b in pairs]}")
    ratio = round(statistics.median(a / b for a, b in pairs), 3)
    rows = [row(f"{metric}, bf16, {name}", "tokens/s", round(ours), {"transformers.Trainer": round(theirs)}, ratio)]
    share = utilisation(ours, documents)
    return rows if share is None else [*rows, row(f"{metric}: model FLOP utilisation", "share", round(share, 4))]


def utilisation(tokens_per_second: float, documents: datasets.Dataset) -> float | None:
    """Share of the GPU's dense bf16 peak; None where that is not known."""
    lengths = document_lengths(documents, "").astype(float)
    flops_per_token = 6 * MULTIPLYING + 12 * LAYERS * WIDTH * (lengths**2).sum() / lengths.sum()  # forward and backward
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    return None if peak is None else float(flops_per_token * tokens_per_second / peak)


def our_rate(documents: datasets.Dataset, functions: str = FUNCTIONS, **options: Any) -> float:
    """Tokens a second of the second epoch."""
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
        valid = documents.select(range(8))
        settings = {"train_batch_size": BATCH, **OURS, **options}
        training = loop.our_training(Path(scratch), documents, valid, SIZE, 13, functions=functions, **settings)
        training.train_epoch()
        training.progress.epoch, training.progress.step = 1, 0
        return training.train_epoch()["tokens_per_second"]


def their_rate(documents: datasets.Dataset, functions: str = FUNCTIONS, **options: Any) -> float:
    """The same of the Trainer, with processes that collate, so that it waits for the GPU alone."""
    settings = {"train_batch_size": BATCH, "bf16": True, "optim": "adamw_torch_fused"}
    workers = {"dataloader_num_workers": min(4, os.cpu_count() or 1), "dataloader_persistent_workers": True}
    clock = EpochClock()
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
        settings = {**settings, **workers, **options}
        trainer = loop.hf_trainer(Path(scratch), documents, None, SIZE, 13, functions=functions, **settings)
        trainer.add_callback(clock)
        trainer.train()
    return float(document_lengths(documents, "").sum() / clock.seconds[-1])


class EpochClock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds of every epoch, what the GPU still has to do included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *arguments: Any, **_: Any) -> None:
        synchronize()
        self.began = time.perf_counter()

    def on_epoch_end(self, *arguments: Any, **_: Any) -> None:
        synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row(
    metric: str, unit: str, ours: float, peers: dict[str, float] | None = None, ratio: float | None = None
) -> dict[str, Any]:
    return {"bench": "training_gpu", "metric": metric, "unit": unit, "ours": ours, "peers": peers or {}, "ratio": ratio}


def varied_lengths(documents: int) -> np.ndarray[Any, Any]:
    """Lengths as documents have them: most are short, some are cut at LENGTH."""
    lengths = np.random.default_rng(1).lognormal(5.2, 0.7, documents)
    return np.clip(lengths, 16, LENGTH).astype(int)


def random_documents(lengths: np.ndarray[Any, Any]) -> datasets.Dataset:
    random = np.random.default_rng(0)
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("uint16")),
            "labels": datasets.ClassLabel(names=list(loop.LABELS)),
            "artifact_guid": datasets.Value("string"),
        }
    )
    columns = {
        "input_ids": [random.integers(1000, 30_000, length) for length in lengths],
        "labels": random.integers(0, len(loop.LABELS), len(lengths)).tolist(),
        "artifact_guid": [str(number) for number in range(len(lengths))],
    }
    return datasets.Dataset.from_dict(columns, features=features)
