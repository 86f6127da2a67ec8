"""The training loop on a GPU against the Hugging Face Trainer: tokens a second, and the model FLOP utilisation of ours.

BERT-base (110 M parameters, randomly initialized) on documents of 512 tokens, in bf16 with sdpa and the fused optimizer. The median of three
pairs; of each training the second epoch counts, the first warms up. Model FLOPs a token: 6 for each parameter that multiplies (all but
the embeddings), and 12 × layers × width × length for attention (the accounting of the PaLM paper, appendix B); utilisation is their
share of the GPU's dense bf16 peak. Without a GPU there is nothing to measure, and no row.
"""

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

# Dense bf16 FLOP/s, from the vendor's data sheets; the first name that is part of the device's name counts.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "L4": 121e12, "T4": 65e12}
LAYERS, WIDTH, LENGTH, DOCUMENTS, BATCH, PAIRS = 12, 768, 512, 6400, 64, 3
SIZE = {"epochs": 2, "documents": DOCUMENTS, "layers": LAYERS}
# Parameters: four projections of attention, and two of the feed-forward layer, which is four times as wide.
MULTIPLYING = 12 * LAYERS * WIDTH**2
FLOPS_PER_TOKEN = 6 * MULTIPLYING + 12 * LAYERS * WIDTH * LENGTH  # forward and backward

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
    documents = random_documents()
    pairs = [(our_rate(documents), their_rate(documents)) for _ in range(PAIRS)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    name = torch.cuda.get_device_name()
    flops = FLOPS_PER_TOKEN * ours
    print(
        f"{name}: pairs, tokens a second (ours, Trainer): {[(round(a), round(b)) for a, b in pairs]}; {flops / 1e12:.1f} TFLOP/s"
    )
    metric = f"BERT-base, {LENGTH} tokens, bf16, {name}"
    ratio = round(statistics.median(a / b for a, b in pairs), 3)
    rows = [row(metric, "tokens/s", round(ours), {"transformers.Trainer": round(theirs)}, ratio)]
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    return rows if peak is None else [*rows, row("model FLOP utilisation", "share", round(flops / peak, 4))]


def our_rate(documents: datasets.Dataset) -> float:
    """Tokens a second of the second epoch."""
    options = {"train_batch_size": BATCH, "mixed_precision": "bf16"}
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
        valid = documents.select(range(8))
        training = loop.our_training(Path(scratch), documents, valid, SIZE, 13, functions=FUNCTIONS, **options)
        training.train_epoch()
        training.progress.epoch, training.progress.step = 1, 0
        return training.train_epoch()["tokens_per_second"]


def their_rate(documents: datasets.Dataset) -> float:
    """The same of the Trainer."""
    options = {"train_batch_size": BATCH, "bf16": True, "optim": "adamw_torch_fused"}
    clock = EpochClock()
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
        trainer = loop.hf_trainer(Path(scratch), documents, None, SIZE, 13, functions=FUNCTIONS, **options)
        trainer.add_callback(clock)
        trainer.train()
    return DOCUMENTS * LENGTH / clock.seconds[-1]


class EpochClock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds of every epoch, what the GPU still has to do included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *arguments: Any, **_: Any) -> None:
        torch.cuda.synchronize()
        self.began = time.perf_counter()

    def on_epoch_end(self, *arguments: Any, **_: Any) -> None:
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def row(
    metric: str, unit: str, ours: float, peers: dict[str, float] | None = None, ratio: float | None = None
) -> dict[str, Any]:
    return {"bench": "training_gpu", "metric": metric, "unit": unit, "ours": ours, "peers": peers or {}, "ratio": ratio}


def random_documents() -> datasets.Dataset:
    random = np.random.default_rng(0)
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("uint16")),
            "labels": datasets.ClassLabel(names=list(loop.LABELS)),
            "artifact_guid": datasets.Value("string"),
        }
    )
    columns = {
        "input_ids": list(random.integers(1000, 30_000, (DOCUMENTS, LENGTH))),
        "labels": random.integers(0, len(loop.LABELS), DOCUMENTS).tolist(),
        "artifact_guid": [str(number) for number in range(DOCUMENTS)],
    }
    return datasets.Dataset.from_dict(columns, features=features)
