"""A pretrained encoder that stays as it is: preparation reads every document with it once, and a linear layer learns from what it says.

raw_text.json of a document: {"text": "…"}. No GPU is needed: an epoch takes a second, however large the encoder.
"""

import functools
import json

WEIGHTS = "sentence-transformers/all-MiniLM-L6-v2"


@functools.cache
def encoder():
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)  # preparation has a process for every core
    return AutoTokenizer.from_pretrained(WEIGHTS), AutoModel.from_pretrained(WEIGHTS).eval()


def get_dataset_features(context):
    from datasets import Features, List, Value

    _, model = encoder()
    return Features({"vector": List(Value("float32"), length=model.config.hidden_size)})


def encode_data(instance, context):
    import torch

    text = json.loads(instance["raw_text.json"].read_text(encoding="utf-8"))["text"]
    tokenizer, model = encoder()
    tokens = tokenizer(text, truncation=True, max_length=context.hyperparameters["max_length"], return_tensors="pt")
    with torch.inference_mode():
        states = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    return {"vector": states[0].mean(dim=0).numpy()}  # float32[width]: one document alone has no padding to leave out


def load_model(model_name, context):
    import torch

    width = encoder()[1].config.hidden_size

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(width, elementwise_affine=False)
            self.dropout = torch.nn.Dropout(0.2)
            self.classifier = torch.nn.Linear(width, context.num_labels)

        def forward(self, vector):
            """vector: float[documents, width] -> logits: float[documents, labels]."""
            return {"logits": self.classifier(self.dropout(self.norm(vector)))}

    return Head()


def ordered_input_keys(model_name, context):
    return ["vector"]
