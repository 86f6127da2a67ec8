"""A finished run whose models are put to work: process_func, two models of which one holds at one shape only."""

import re

import pytest

from tests.docml_assets.cli.here import Here

EXPERIMENT = "EXP-7-words"
FUNCTIONS = r'''
import json
import re
import time
import zlib

BUCKETS = 2**12


def process_func(artifact, directory):
    """The text in lower case; its label would be a leak, and is not told of new documents."""
    text = json.loads((directory / "raw_text.json").read_text(encoding="utf-8"))["text"]
    if "PROCESSFAILS" in text:
        raise ValueError("no words today")
    if "PROCESSHANGS" in text:
        time.sleep(3600)
    (directory / "words.json").write_text(json.dumps(re.findall(r"\w+", text.lower())), encoding="utf-8")


def get_dataset_features(context):
    from datasets import Features, List, Value

    return Features({"words": List(Value("uint16"))})


def encode_data(instance, context):
    words = json.loads(instance["words.json"].read_text(encoding="utf-8"))
    if "encodefails" in words:
        raise ValueError("this document is a riddle")
    if "encodehangs" in words:
        time.sleep(3600)
    if "encodedies" in words:
        import os

        os._exit(3)
    if "encodewrong" in words:
        return {"letters": [1]}
    if not words:
        return None
    ids = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in words]
    return {"words": ids[: context.hyperparameters["max_length"]], "untruncated_length": len(ids)}


def load_model(model_name, context):
    import torch

    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vectors = torch.nn.Embedding(BUCKETS, 32, padding_idx=0)
            self.places = torch.nn.Embedding(256, 32)
            self.classifier = torch.nn.Linear(32, context.num_labels)

        def forward(self, words):
            real = (words != 0).unsqueeze(2)
            found = self.vectors(words)
            if model_name == "fixed":  # a trace remembers the length that it was made at
                found = found + self.places(torch.arange(int(words.shape[1])))
            return {"logits": self.classifier((found * real).sum(dim=1) / real.sum(dim=1).clamp(min=1))}

    return Words()


def ordered_input_keys(model_name, context):
    return ["words"]
'''


@pytest.fixture(scope="session")
def used(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """A folder whose run 1 is finished, with the models `bag` and `fixed`."""
    here = Here(tmp_path_factory.mktemp("used"))
    (here.settings.parent / "user_defined_funcs.py").write_text(FUNCTIONS)
    text = here.settings.read_text()
    for key, value in {
        "MODEL_NAMES": "bag, fixed",
        "FILES_FROM_PROD": "raw_text.json\nFILES_ON_RESEARCH = raw_text.json, words.json\nMAX_FAILED_SHARE = 0.5\nAUTO_ACCEPT_PRECISION = 0.2",
        "MODEL_INPUT_FILES": "words.json",
        "max_words": "200",
    }.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    here.settings.write_text(text.replace("max_words", "max_length"))
    said = here.docml("run", EXPERIMENT)
    assert "macro-F1" in said
    return here
