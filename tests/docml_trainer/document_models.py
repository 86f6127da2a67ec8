"""Document models as people build them, tiny and randomly initialized: their features, their functions, documents for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from docml_contract.names import column_prefix
from tests.docml_trainer.trainings import LABELS

LONGEST = 48  # words; the shortest documents have 2
SIDE = 16  # of an image, in pixels
Random = np.random.Generator

HEAD = """
import torch, transformers
transformers.utils.logging.set_verbosity_error()
SMALL = dict(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
             initializer_range=0.2)
"""
WORDS = datasets.List(datasets.Value("int32"))
BOXES = datasets.List(datasets.List(datasets.Value("int32"), length=4))


@dataclass(frozen=True)
class DocumentModel:
    """One model. `encode`: a document's features from its word ids; `functions`: user_defined_funcs.py."""

    features: dict[str, Any]
    encode: Callable[[np.ndarray[Any, Any], Random], dict[str, Any]]
    functions: str


def words(ids: np.ndarray[Any, Any], random: Random) -> dict[str, Any]:
    """The ids alone."""
    return {"input_ids": ids}


def boxes(ids: np.ndarray[Any, Any], random: Random) -> dict[str, Any]:
    """A box on the page for every word: x0, y0, x1, y1 of 1,000, ordered."""
    low = random.integers(0, 500, (len(ids), 2))
    return {"input_ids": ids, "bbox": np.hstack([low, low + random.integers(0, 500, (len(ids), 2))])}


def pages(ids: np.ndarray[Any, Any], random: Random) -> dict[str, Any]:
    """One page for every twelve words, the last one with what is left, each with boxes and a picture."""
    cuts = np.arange(12, len(ids), 12)
    laid_out = np.split(boxes(ids, random)["bbox"], cuts)
    pictures = random.integers(0, 256, (len(cuts) + 1, 3, SIDE, SIDE)).astype(np.uint8)
    return {"input_ids": as_lists(np.split(ids, cuts)), "bbox": as_lists(laid_out), "pictures": pictures}


def as_lists(parts: list[np.ndarray[Any, Any]]) -> list[Any]:
    """Lists of several lengths."""
    return [part.tolist() for part in parts]


def globally(ids: np.ndarray[Any, Any], random: Random) -> dict[str, Any]:
    """Attention to all words from the first one."""
    return {"input_ids": ids, "global_attention_mask": np.arange(len(ids)) == 0}


def picture(ids: np.ndarray[Any, Any], random: Random) -> dict[str, Any]:
    """The first page only."""
    return {"pixel_values": random.integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8)}


def functions(body: str, keys: list[str]) -> str:
    """A module whose load_model has that body."""
    return f"{HEAD}\ndef load_model(model_name, context):\n{body}\n\ndef ordered_input_keys(model_name, context):\n    return {keys}\n"


CHUNKED = """
    class Pages(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config = transformers.LiltConfig(**SMALL, max_position_embeddings=66, max_2d_position_embeddings=1024, pad_token_id=1)
            self.lilt = transformers.LiltModel(config, add_pooling_layer=False)
            self.look = torch.nn.Conv2d(3, 24, 8, stride=8)
            self.classifier = torch.nn.Linear(24, context.num_labels)

        def forward(self, input_ids, bbox, pictures, attention_mask):
            real = attention_mask.any(dim=2)  # bool[documents, pages]
            mask = attention_mask[real]
            states = self.lilt(input_ids=input_ids[real], bbox=bbox[real], attention_mask=mask).last_hidden_state
            read = (states * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            seen = self.look(pictures[real].float() / 255).mean(dim=(2, 3))
            document = real.nonzero()[:, 0]
            whole = read.new_zeros(len(real), 24).index_add(0, document, read + seen)
            return {"logits": self.classifier(whole / real.sum(dim=1, keepdim=True))}

    return Pages()"""
BERT = """
    config = transformers.BertConfig(**SMALL, max_position_embeddings=64, num_labels=context.num_labels)
    return transformers.BertForSequenceClassification(config)"""
VIT = """
    class Pixels(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.model = transformers.ViTForImageClassification(config)

        def forward(self, pixel_values):
            return self.model(pixel_values=pixel_values.float() / 255)

    small = {name: value for name, value in SMALL.items() if name != "vocab_size"}
    return Pixels(transformers.ViTConfig(**small, image_size=16, patch_size=4, num_labels=context.num_labels))"""

MODELS = {
    "bert": DocumentModel({"input_ids": WORDS}, words, functions(BERT, ["input_ids", "attention_mask"])),
    "lilt": DocumentModel(
        {"input_ids": WORDS, "bbox": BOXES},
        boxes,
        functions(
            """
    config = transformers.LiltConfig(**SMALL, max_position_embeddings=66, max_2d_position_embeddings=1024, pad_token_id=1,
                                     num_labels=context.num_labels)
    return transformers.LiltForSequenceClassification(config)""",
            ["input_ids", "bbox", "attention_mask"],
        ),
    ),
    "pages": DocumentModel(
        {
            "input_ids": datasets.List(WORDS),
            "bbox": datasets.List(BOXES),
            "pictures": datasets.List(datasets.Array3D((3, SIDE, SIDE), "uint8")),
        },
        pages,
        functions(CHUNKED, ["input_ids", "bbox", "pictures", "attention_mask"]),
    ),
    "longformer": DocumentModel(
        {"input_ids": WORDS, "global_attention_mask": datasets.List(datasets.Value("int8"))},
        globally,
        functions(
            """
    config = transformers.LongformerConfig(**SMALL, attention_window=[4, 4], max_position_embeddings=66, pad_token_id=1,
                                           num_labels=context.num_labels)
    return transformers.LongformerForSequenceClassification(config)""",
            ["input_ids", "attention_mask", "global_attention_mask"],
        ),
    ),
    "decoder": DocumentModel(
        {"input_ids": WORDS},
        words,
        functions(
            """
    config = transformers.GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2,
                                     bos_token_id=1, eos_token_id=1, pad_token_id=1, num_labels=context.num_labels)
    return transformers.GPT2ForSequenceClassification(config)""",
            ["input_ids", "attention_mask"],
        ),
    ),
    "image": DocumentModel(
        {"pixel_values": datasets.Array3D((3, SIDE, SIDE), "uint8")}, picture, functions(VIT, ["pixel_values"])
    ),
}


def documents(names: tuple[str, ...], count: int, seed: int) -> datasets.Dataset:
    """Documents encoded for each of the models, short and long in turns, of labels that their words tell."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        length = int(random.integers(2, 6)) if index % 2 else int(random.integers(LONGEST - 8, LONGEST + 1))
        label = int(random.integers(len(LABELS)))
        ids = random.integers(5 + 15 * label, 25 + 15 * label, length)
        row: dict[str, Any] = {"labels": label, "artifact_guid": f"guid-{seed}-{index:03d}"}
        for name in names:
            prefix = column_prefix(name, names)
            row |= {
                prefix + feature: value if isinstance(value, list) else value.tolist()
                for feature, value in MODELS[name].encode(ids, random).items()
            }
        rows.append(row)
    features = {
        column_prefix(name, names) + key: value for name in names for key, value in MODELS[name].features.items()
    }
    features |= {"labels": datasets.ClassLabel(names=list(LABELS)), "artifact_guid": datasets.Value("string")}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))
