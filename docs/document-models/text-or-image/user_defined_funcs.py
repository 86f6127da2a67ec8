"""Does the text tell the label, or the look of the first page? A comparison on the same documents.

raw_text.json of a document: {"text": "…"}, and page_1.png.
"""

import functools
import json

WEIGHTS = {"minilm": "sentence-transformers/all-MiniLM-L6-v2", "dit": "microsoft/dit-base"}


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WEIGHTS["minilm"])


def get_dataset_features(context):
    from datasets import Array3D, Features, List, Value

    if context.model_name == "dit":
        return Features({"pixel_values": Array3D((3, 224, 224), "uint8")})
    return Features({"input_ids": List(Value("int32"))})


def encode_data(instance, context):
    if context.model_name == "dit":
        import numpy as np
        from PIL import Image

        page = Image.open(instance["page_1.png"]).convert("RGB").resize((224, 224))
        return {"pixel_values": np.asarray(page).transpose(2, 0, 1)}
    text = json.loads(instance["raw_text.json"].read_text(encoding="utf-8"))["text"]
    length = context.hyperparameters["max_length"]
    return {"input_ids": tokenizer()(text, truncation=True, max_length=length)["input_ids"]}


def load_model(model_name, context):
    import torch
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    kind = AutoModelForImageClassification if model_name == "dit" else AutoModelForSequenceClassification
    model = kind.from_pretrained(WEIGHTS[model_name], num_labels=context.num_labels)
    if model_name == "minilm":
        return model

    class Picture(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            """uint8[documents, 3, 224, 224], scaled here: bytes take a quarter of the space that numbers would."""
            return self.model(pixel_values=pixel_values.float() / 127.5 - 1)

    return Picture()


def ordered_input_keys(model_name, context):
    return ["pixel_values"] if model_name == "dit" else ["input_ids", "attention_mask"]
