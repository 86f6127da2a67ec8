"""Pages as pictures: processor time to fetch and collate one of 3 × 224 × 224, and bytes on disk, against `datasets` and PyTorch's collate.

Half of the pages are clean text, half look scanned: noise on toned paper is the hardest for PNG. Both are prepared by the whole job, once as
files (`datasets.Image`) and once as arrays (`Array3D`). The peer reads the same data set in its torch format, as a DataLoader does.
Rounds are interleaved, times are medians of rounds. Goals: 3 ms a page, and 1.1 of the PNG files' bytes.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import default_collate

from docml_contract.names import SPLITS
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import fetch
from tests.docml_trainer.preparations import Doc, metadata_of, preparation

PAGES = 400
BATCH = 16
ROUNDS = 15
SIDE = 224
PEER = "datasets + default_collate"
KINDS = ("clean", "scanned")

_FUNCTIONS = """\
import datasets

def get_dataset_features(context):
    return datasets.Features({"page": FEATURE})

def encode_data(instance, context):
    import numpy as np
    from PIL import Image

    path = instance["page.png"]
    return {"page": ENCODED}
"""
FILES = _FUNCTIONS.replace("FEATURE", "datasets.Image()").replace("ENCODED", "path")
ARRAYS = _FUNCTIONS.replace("FEATURE", 'datasets.Array3D((3, 224, 224), "uint8")').replace(
    "ENCODED", "np.asarray(Image.open(path)).transpose(2, 0, 1)"
)


def run() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    random = np.random.default_rng(13)
    docs = [
        Doc(f"page-{index:05d}", KINDS[index % 2], files={"page.png": _page(random, scanned=index % 2 == 1)})
        for index in range(PAGES)
    ]
    with tempfile.TemporaryDirectory() as folder:
        sizes, data = {}, {}
        for name, functions in (("files", FILES), ("arrays", ARRAYS)):
            job = preparation(
                Path(folder) / name, docs, functions=functions, model_input_files=("page.png",), baseline=False
            )
            if job.run().returncode:
                raise RuntimeError(f"the preparation of {name} failed: {job.failure}")
            sizes[name] = metadata_of(job)["bytes_on_disk"]
            splits = [datasets.load_from_disk(str(job.output / split)) for split in SPLITS]
            data[name] = max(splits, key=len)
        rows = [_time_row(f"{kind} page, {name}", data[name], kind) for name in data for kind in KINDS]
    png = sum(len(content) for doc in docs for content in doc.contents().values())
    return [
        *rows,
        _row("bytes on disk, files", "bytes/page", sizes["files"] / PAGES, {"PNG files": png / PAGES}),
        _row("bytes on disk, arrays", "bytes/page", sizes["arrays"] / PAGES, {"PNG files": png / PAGES}),
    ]


def _page(random: np.random.Generator, *, scanned: bool) -> bytes:
    """A page of letters as a PNG."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    for top in range(8, SIDE - 16, 10):
        draw.text((10, top), "".join(map(chr, random.integers(97, 123, 33))), fill="black")
    if scanned:
        pixels = (
            np.asarray(image) * 0.8 + 30 + random.normal(0, 6, (SIDE, SIDE, 1)) + random.normal(0, 1, (SIDE, SIDE, 3))
        )
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _time_row(metric: str, data: datasets.Dataset, kind: str) -> dict[str, Any]:
    """Processor milliseconds a page, of both in turn."""
    label = data.features["labels"].str2int(kind)
    rows = np.flatnonzero(np.array(data["labels"][:]) == label)
    batches = [rows[start : start + BATCH] for start in range(0, len(rows) - BATCH + 1, BATCH)]
    ours, theirs = Collator(data.features), data.select_columns(["page", "labels"]).with_format("torch")
    contenders: dict[str, Callable[[np.ndarray[Any, Any]], torch.Tensor]] = {
        "ours": lambda batch: ours(fetch(data, batch))["page"],
        PEER: lambda batch: default_collate(theirs.__getitems__(batch.tolist()))["page"],
    }
    found = {name: contender(batches[0]) for name, contender in contenders.items()}
    if found["ours"].dtype != torch.uint8 or not torch.equal(found["ours"], found[PEER]):
        raise ValueError("ours and the peer's batch differ; expected the same pixels")
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            started = time.process_time()
            for batch in batches:
                contender(batch)
            taken[name].append((time.process_time() - started) * 1000 / (len(batches) * BATCH))
    mine, peer = (statistics.median(taken[name]) for name in contenders)
    return _row(metric, "ms/page", mine, {PEER: peer})


def _row(metric: str, unit: str, ours: float, peers: dict[str, float]) -> dict[str, Any]:
    ratio = min(peers.values()) / ours
    return {"bench": "pictures", "metric": metric, "unit": unit, "ours": ours, "peers": peers, "ratio": ratio}
