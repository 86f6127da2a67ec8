"""The scaffolds' functions do what the trainer asks of them, on real documents and with a real (tiny, random) encoder."""

import json
from pathlib import Path

import datasets
import pytest
import torch

from docml_assets.experiment.scaffold import new_experiment
from docml_assets.experiment.settings.settings import parse_settings
from docml_trainer.data.collate import Collator
from docml_trainer.functions import Context, UserFunctions

TEXTS = ["one two three two", "one " * 50, "two three"]


def tiny_encoder(folder: Path) -> Path:
    """A BERT of a few thousand random weights and a vocabulary of eight words, saved as the hub serves models."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pretrained", [False, True])
def test_encode_collate_and_forward(tmp_path: Path, pretrained: bool) -> None:
    model = str(tiny_encoder(tmp_path / "tiny_bert")) if pretrained else None
    settings_path, functions_path = new_experiment(tmp_path / "EXP-1", model)
    settings = parse_settings(settings_path.read_text(), settings_path)
    (name,) = settings.model_names
    context = Context.of(name, settings.model_names, ["a", "b"], settings.own_hyperparameters)
    functions = UserFunctions.load(functions_path)
    files = [tmp_path / f"{index}.json" for index in range(len(TEXTS))]
    for file, text in zip(files, TEXTS, strict=True):
        file.write_text(json.dumps({"text": text}))
    instances = [{"raw_text.json": file} for file in files]

    if pretrained:
        assert functions.encode_batch is not None
        encoded = functions.encode_batch(instances, context)
        rows = [{"input_ids": ids} for ids in encoded["input_ids"]]
        assert encoded["untruncated_length"] == [6, 52, 4]
        assert [len(ids) for ids in encoded["input_ids"]] == [6, 24, 4]
        assert all((ids[0], ids[-1]) == (2, 3) for ids in encoded["input_ids"])
    else:
        assert functions.encode_data is not None
        encoded_rows = [functions.encode_data(instance, context) for instance in instances]
        assert all(encoded_rows)
        assert [row["untruncated_length"] for row in encoded_rows if row] == [4, 50, 2]
        rows = [{"words": row["words"]} for row in encoded_rows if row]

    features = functions.get_dataset_features(context)
    stored = datasets.Dataset.from_list(rows, features=features)  # the declared types hold the values
    module = functions.load_model(name, Context.of(name, (name,), ["a", "b"], settings.hyperparameters)).eval()
    keys = functions.ordered_input_keys(name, context)
    collate = Collator(features, functions.padding, forward_parameters=keys)
    batch = collate(list(stored))
    with torch.no_grad():
        logits = module(**{key: batch[key] for key in keys})["logits"]
        alone = [
            module(**{key: tensor[key] for key in keys})["logits"] for tensor in map(collate, [[row] for row in stored])
        ]
    assert logits.shape == (3, 2)
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-5, rtol=1e-4)  # padding changes nothing
