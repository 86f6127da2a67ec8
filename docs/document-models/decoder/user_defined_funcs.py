"""A decoder as a classifier: the last token of a document has read all others.

raw_text.json of a document: {"text": "…"}.
"""

import functools
import json

WEIGHTS = "Qwen/Qwen3-0.6B-Base"


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WEIGHTS)


def get_dataset_features(context):
    from datasets import Features, List, Value

    return Features({"input_ids": List(Value("int32"))})


def encode_data(instance, context):
    text = json.loads(instance["raw_text.json"].read_text(encoding="utf-8"))["text"]
    return {
        "input_ids": tokenizer()(text, truncation=True, max_length=context.hyperparameters["max_length"])["input_ids"]
    }


def load_model(model_name, context):
    from transformers import AutoModelForSequenceClassification

    # Decoders are published without pad_token_id, and find the last token of a document by it. The weights are stored in bfloat16; they are
    # trained in float32 (weights_dtype).
    return AutoModelForSequenceClassification.from_pretrained(
        WEIGHTS, num_labels=context.num_labels, pad_token_id=tokenizer().pad_token_id
    )


def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask"]
