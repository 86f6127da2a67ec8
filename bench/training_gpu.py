"""The training loop on a GPU: tokens a second and model FLOP utilisation, in bf16 with sdpa and the fused optimizer.

BERT-base (110 M parameters, randomly initialized) on documents of 512 tokens. Model FLOPs a token: 6 for each parameter that multiplies
(all but the embeddings), and 12 × layers × width × length for attention (the accounting of the PaLM paper, appendix B); utilisation
is their share of the GPU's dense bf16 peak. Without a GPU there is nothing to measure, and no row.
"""

import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from bench import training as loop

# Dense bf16 FLOP/s, from the vendor's data sheets; the first name that is part of the device's name counts.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "L4": 121e12, "T4": 65e12}
LAYERS, WIDTH, LENGTH, DOCUMENTS, BATCH = 12, 768, 512, 6400, 64

FUNCTIONS = f"""
def load_model(model_name, context):
    import transformers
    config = transformers.BertConfig(num_hidden_layers={LAYERS}, hidden_size={WIDTH}, num_labels=context.num_labels)
    config._attn_implementation = "sdpa"
    return transformers.BertForSequenceClassification(config)
"""


def run() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        print("No GPU: nothing is measured.")
        return []
    size = {"epochs": 2, "documents": DOCUMENTS, "layers": LAYERS}
    documents = random_documents()
    options = {"train_batch_size": BATCH, "mixed_precision": "bf16"}
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
        valid = documents.select(range(8))
        training = loop.our_training(Path(scratch), documents, valid, size, 13, functions=FUNCTIONS, **options)
        training.train_epoch()  # warms up
        training.progress.epoch, training.progress.step = 1, 0
        tokens = training.train_epoch()["tokens_per_second"]
        flops = flops_per_token(training.bare.module) * tokens
    name = torch.cuda.get_device_name()
    print(
        f"{name}: {tokens:,.0f} tokens a second, {flops / 1e12:.1f} TFLOP/s, peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    )
    rows = [row(f"BERT-base, {LENGTH} tokens, bf16, {name}", "tokens/s", tokens)]
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    return rows if peak is None else [*rows, row("model FLOP utilisation", "share", round(flops / peak, 4))]


def row(metric: str, unit: str, ours: float) -> dict[str, Any]:
    return {"bench": "training_gpu", "metric": metric, "unit": unit, "ours": ours, "peers": {}, "ratio": None}


def flops_per_token(model: torch.nn.Module) -> float:
    """Forward and backward."""
    multiplying = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)
    return 6 * multiplying + 12 * LAYERS * WIDTH * LENGTH


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
