"""Longformer: 4,096 tokens at once, of which the first one attends to all others.

raw_text.json of a document: {"text": "…"}.
"""

import functools
import json

WEIGHTS = "allenai/longformer-base-4096"


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WEIGHTS)


def get_dataset_features(context):
    from datasets import Features, List, Value

    return Features({"input_ids": List(Value("int32")), "global_attention_mask": List(Value("int8"))})


def encode_data(instance, context):
    text = json.loads(instance["raw_text.json"].read_text(encoding="utf-8"))["text"]
    ids = tokenizer()(text, truncation=True, max_length=context.hyperparameters["max_length"])["input_ids"]
    return {"input_ids": ids, "global_attention_mask": [1] + [0] * (len(ids) - 1)}


def load_model(model_name, context):
    from transformers import LongformerForSequenceClassification

    return LongformerForSequenceClassification.from_pretrained(WEIGHTS, num_labels=context.num_labels)


def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask", "global_attention_mask"]
