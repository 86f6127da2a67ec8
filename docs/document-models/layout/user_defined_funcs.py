"""LiLT: words and where they stand on the page, without a picture.

words.json of a document: {"words": ["Invoice", …], "boxes": [[x0, y0, x1, y1], …]}, in thousandths of the page's width and height.
"""

import functools
import json

WEIGHTS = "SCUT-DLVCLab/lilt-roberta-en-base"
TOKENIZER = "FacebookAI/roberta-base"  # LiLT's text half is RoBERTa's


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER, add_prefix_space=True)


def get_dataset_features(context):
    from datasets import Features, List, Value

    return Features({"input_ids": List(Value("int32")), "bbox": List(List(Value("int32"), length=4))})


def encode_data(instance, context):
    page = json.loads(instance["words.json"].read_text(encoding="utf-8"))
    length = context.hyperparameters["max_length"]
    tokens = tokenizer()(page["words"], is_split_into_words=True, truncation=True, max_length=length)
    # A word's tokens share its box; special tokens have none.
    boxes = [[0, 0, 0, 0] if word is None else page["boxes"][word] for word in tokens.word_ids()]
    return {"input_ids": tokens["input_ids"], "bbox": boxes}


def load_model(model_name, context):
    from transformers import LiltForSequenceClassification

    return LiltForSequenceClassification.from_pretrained(WEIGHTS, num_labels=context.num_labels)


def ordered_input_keys(model_name, context):
    return ["input_ids", "bbox", "attention_mask"]
