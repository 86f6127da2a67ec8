"""Models as people load them: fit to be trained, or refused with the experimenter's own line before the first step."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers

from docml_contract.jobs import TrainPart
from docml_contract.learning_curve import draw_part
from docml_trainer.training.setup import enable_gradient_checkpointing
from tests.docml_trainer.trainings import BAG, run_here, split, training_job, weights

BERT = """
import torch, transformers
transformers.utils.logging.set_verbosity_error()
SMALL = dict(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)

def load_model(model_name, context):
    config = transformers.BertConfig(**SMALL, num_labels=context.num_labels)
    model = transformers.BertForSequenceClassification(config)
    return model

def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask"]
"""
GPT2 = BERT.replace(
    "transformers.BertConfig(**SMALL, num_labels=context.num_labels)",
    "transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=context.num_labels,\n"
    "        bos_token_id=1, eos_token_id=1, pad_token_id=PAD)",
).replace("BertForSeq", "GPT2ForSeq")
RETURNED = '        return {"logits": self.classifier(self.dropout(pooled))}'
MASKED = "pooled = (self.embedding(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)"


def failure(job_folder: Path, monkeypatch: pytest.MonkeyPatch, functions: str, **options: Any) -> str:
    """The reason of a training that fails."""
    job = training_job(job_folder, functions, **options)
    assert run_here(job, monkeypatch) == 1
    assert "\n" not in job.failure, "one reason, no traceback"
    return job.failure


def test_a_half_precision_checkpoint_trains_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    functions = BERT.replace(
        "    return model",
        f"    model.to(torch.bfloat16).save_pretrained({str(tmp_path / 'stored')!r})\n"
        f"    return transformers.AutoModelForSequenceClassification.from_pretrained({str(tmp_path / 'stored')!r})",
    )
    hyperparameters = {"learning_rate": 1e-5, "lr_scheduler": "constant_with_warmup"}
    job = training_job(tmp_path / "float32", functions, hyperparameters=hyperparameters)
    assert run_here(job, monkeypatch) == 0
    assert "load_model returned weights in bfloat16; they train in float32 (weights_dtype = as_loaded" in (
        capsys.readouterr().out
    )
    trained = weights(job)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    moved = [name for name, tensor in trained.items() if not torch.equal(tensor, tensor.bfloat16().float())]
    assert {"bert.encoder.layer.0.output.dense.weight", "classifier.weight"} <= set(moved), (
        "also by less than bfloat16 resolves"
    )

    kept = training_job(tmp_path / "kept", functions, hyperparameters=hyperparameters | {"weights_dtype": "as_loaded"})
    assert run_here(kept, monkeypatch) == 0
    assert {tensor.dtype for tensor in weights(kept).values()} == {torch.bfloat16}


def test_a_frozen_half_of_another_precision_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = BAG.replace(
        "self.embedding(input_ids)", "self.embedding(input_ids).float()"
    ).replace(
        "    return Bag(", "    return half(Bag("
    ).replace('0.0), dtype)', '0.0), dtype))') + (
        "\ndef half(model):\n    model.embedding.to(torch.bfloat16).requires_grad_(False)\n    return model\n"
    )  # fmt: skip
    job = training_job(tmp_path, functions)
    assert run_here(job, monkeypatch) == 0, job.failure
    assert weights(job)["embedding.weight"].dtype == torch.bfloat16


def test_the_pad_value_is_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training_job(tmp_path, GPT2.replace("PAD", "1"), model="gpt2")
    assert run_here(job, monkeypatch) == 0, job.failure
    export = json.loads((job.output / "export.json").read_text())
    assert export["padding"] == {"input_ids": 1}
    assert {"alone equals padded in a batch", "in any batch order"} <= set(export["cases"])


def test_padding_that_disagrees_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = 'PADDING = {"input_ids": 0}\n' + GPT2.replace("=PAD", "=1")
    assert failure(tmp_path, monkeypatch, functions) == (
        'user_defined_funcs.py, line 1: PADDING = {"input_ids": 0}: PADDING has input_ids = 0, the configuration of the loaded model '
        "has pad_token_id = 1; expected the same value (leave input_ids out of PADDING, or set config.pad_token_id)"
    )


def test_a_decoder_without_a_pad_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = failure(tmp_path, monkeypatch, GPT2.replace("=PAD", "=None"))
    assert "(user_defined_funcs.py, line 10: return model); set config.pad_token_id to the value that" in reason


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param(MASKED, "pooled = self.embedding(input_ids).mean(dim=1)", r"line 20: return Bag\(.*: the loaded model answers differently for a document alone and padded in a batch with a longer one \(a logit by .* use attention_mask", id="padding-counts"),
        pytest.param(RETURNED, RETURNED.replace("self.dropout(pooled)", "self.norm(pooled)"), r"failed in epoch 1, step 1: ValueError: Expected more than 1 value per channel when training.*line \d+, in forward: .*; batch normalization needs two documents per batch: raise train_batch_size", id="batch-norm-of-one"),
        pytest.param("Embedding(60,", "Embedding(50,", r"IndexError: index out of range in self \(user_defined_funcs.py, line 15, in forward: .*; a feature holds an id beyond", id="ids-out-of-range"),
        pytest.param(RETURNED, RETURNED.replace("pooled))", "pooled)).detach()"), r"failed in epoch 1, step 1: RuntimeError: .*does not require grad.*\(user_defined_funcs.py, line 20: return Bag.*; forward\(\) cuts the gradient", id="detached"),
        pytest.param("self.dropout(pooled)", "torch.nn.functional.dropout(pooled, 0.5)", r"answers differently each time it is asked .*functional.dropout needs training=self.training", id="random-in-evaluation"),
        pytest.param(RETURNED, "        if self.training: raise KeyError('page')\n" + RETURNED, r"failed in epoch 1, step 1: KeyError: 'page' \(user_defined_funcs.py, line 16, in forward", id="raises-in-training"),
    ],
)  # fmt: skip
def test_models_that_are_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, reason: str
) -> None:
    functions = BAG.replace(old, new)
    assert functions != BAG
    functions = functions.replace(
        "        self.dropout =", "        self.norm = torch.nn.BatchNorm1d(8)\n        self.dropout ="
    ) if "self.norm" in functions else functions  # fmt: skip
    found = failure(tmp_path, monkeypatch, functions, hyperparameters={"train_batch_size": 1})
    assert re.search(reason, found), found


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("num_labels=context.num_labels)", 'num_labels=context.num_labels, problem_type="multi_label_classification")', "line 7: config = transformers.BertConfig(**SMALL, num_labels=context.num_labels, problem_type=\"multi_label_classification\"): load_model returned a model with problem_type = 'multi_label_classification'; expected single_label_classification"),
        ("    return model", "    model.requires_grad_(False)\n    return model", "line 9: model.requires_grad_(False): load_model returned a model whose weights are all frozen; expected at least one that trains"),
    ],
    ids=["problem-type", "frozen"],
)  # fmt: skip
def test_models_that_cannot_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, reason: str
) -> None:
    assert failure(tmp_path, monkeypatch, BERT.replace(old, new)).startswith(f"user_defined_funcs.py, {reason}")


@pytest.mark.parametrize("remainder", [1, 2])
def test_batch_normalization_sees_no_batch_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remainder: int
) -> None:
    functions = BAG.replace("self.dropout(pooled)", "self.norm(pooled)").replace(
        "        self.dropout =", "        self.norm = torch.nn.BatchNorm1d(8)\n        self.dropout ="
    )
    job = training_job(tmp_path, functions, documents=(24 + remainder, 9), hyperparameters={"eval_batch_size": 4})
    assert run_here(job, monkeypatch) == 0, job.failure


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(('["input_ids", "attention_mask"]', '["input_ids", "words"]'), "ordered_input_keys returned words, which are not features of the encoded data; expected some of input_ids, attention_mask", id="unknown"),
        pytest.param(('["input_ids", "attention_mask"]', '["input_ids"]'), "ordered_input_keys returned input_ids, without attention_mask; expected all that forward() of the loaded model requires", id="incomplete"),
        pytest.param(("input_ids, attention_mask):", "input_ids, attention_mask, labels):"), "ordered_input_keys returned input_ids, attention_mask, without labels; expected all", id="labels"),
    ],
)  # fmt: skip
def test_input_keys_are_checked_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], reason: str
) -> None:
    found = failure(tmp_path, monkeypatch, BAG.replace(*change))
    assert re.match(r"user_defined_funcs.py, line \d+: def ordered_input_keys\(model_name, context\):: ", found)
    assert reason in found


def test_a_mask_that_the_export_would_not_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = BERT.replace('["input_ids", "attention_mask"]', '["input_ids"]')
    found = failure(tmp_path, monkeypatch, functions)
    assert "answers differently for a document alone and padded in a batch" in found
    assert "name it in ordered_input_keys" in found


def test_head_learning_rate_without_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = BAG.replace("self.classifier", "self.decide")
    reason = failure(tmp_path, monkeypatch, functions, hyperparameters={"head_learning_rate": 0.1})
    assert reason.startswith("head_learning_rate = 0.1 applies to nothing")


def test_labels_that_do_not_exist_and_a_single_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training_job(tmp_path)
    data = split(12, 1)
    one = data.filter(lambda row: row["labels"] == 0)
    beyond = datasets.Dataset.from_dict(data.to_dict() | {"labels": [0, 1, -1] * 4})
    beyond.info.features["labels"] = data.features["labels"]
    for changed, reason in (
        (one, f"all {len(one)} training documents have the label 'letter'; expected documents of at least two labels"),
        (beyond, "4 of 12 documents have a label that does not exist, row 2 for example -1; expected 0 to 2"),
    ):
        changed.save_to_disk(str(job.channel("train")))
        assert run_here(job, monkeypatch) == 1
        assert reason in job.failure


@pytest.mark.parametrize("wrapped", [False, True])
def test_gradient_checkpointing_of_a_model_and_of_its_parts(wrapped: bool) -> None:
    """The library's own notices are errors here, as in every test."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model: torch.nn.Module = transformers.BertForSequenceClassification(transformers.BertConfig(**small, vocab_size=9))
    bert = model
    if wrapped:
        model = torch.nn.ModuleDict({"text": model, "other": torch.nn.Linear(2, 2)})
    enable_gradient_checkpointing(model)
    assert bert.is_activation_checkpointing


def test_a_part_of_the_documents_is_trained_on_as_if_there_were_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = TrainPart(divisor=4, index=1)
    whole = training_job(tmp_path / "whole", part=part)
    train = split(60, 1)
    rows = draw_part(np.array(train["labels"]), 4, 1)
    for name, data in (("train", train.select(rows)), ("valid", split(30, 2))):
        data.save_to_disk(str(tmp_path / "splits" / name))
    alone = training_job(tmp_path / "alone", splits=tmp_path / "splits")
    assert [run_here(job, monkeypatch) for job in (whole, alone)] == [0, 0]
    trained, expected = weights(whole), weights(alone)
    assert all(torch.equal(trained[name], expected[name]) for name in expected)
    assert len(rows) == part.size(60) == 15
