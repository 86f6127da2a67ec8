"""The encoder's answers: rows that are right, documents that fail, encoders that are wrong."""

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from docml_trainer.data.datasets import fetch
from docml_trainer.data.pictures import read_pictures
from docml_trainer.errors import DataError, UserCodeError
from docml_trainer.functions import Context, UserFunctions
from docml_trainer.preparation.documents import Documents, InputDocument
from docml_trainer.preparation.encoder import DIGEST, SIGNATURE, Encoder
from docml_trainer.preparation.near_duplicates import compute_signatures
from docml_trainer.preparation.rows import write_unlabelled

HEAD = """\
import json
from datasets import Features, List, Value

def get_dataset_features(context):
    return Features({"input_ids": List(Value("uint16")), "boxes": List(List(Value("int32"), length=2))})

def words(instance):
    return json.loads(instance["raw_text.json"].read_bytes())["text"].split()
"""
ENCODE_DATA = """
def encode_data(instance, context):
    found = words(instance)
    if not found:
        return None
    ids = [len(word) for word in found]
    return {"input_ids": ids, "boxes": [[i, i + 1] for i in ids], "untruncated_length": len(ids) + 1}
"""
ENCODE_BATCH = """
def encode_batch(instances, context):
    return [encode_data(instance, context) for instance in instances]
"""


def encoder(tmp_path: Path, source: str, models: tuple[str, ...] = ("toy",), sign: bool = False) -> Encoder:
    path = tmp_path / "user_defined_funcs.py"
    path.write_text(source)
    contexts = tuple(Context.of(model, models, ("a", "b"), {}) for model in models)
    return Encoder(UserFunctions.load(path), contexts, sign, lambda first, count: None)


def document(tmp_path: Path, position: int, content: bytes | str | None, label: str = "a") -> InputDocument:
    path = tmp_path / f"{position}.json"
    if content is None:
        return InputDocument(position, f"guid-{position}", label, {}, ("raw_text.json",))
    path.write_bytes(content if isinstance(content, bytes) else json.dumps({"text": content}).encode())
    return InputDocument(position, f"guid-{position}", label, {"raw_text.json": path}, ())


def test_encode_batch_gives_the_same_rows_as_encode_data(tmp_path: Path) -> None:
    documents = [document(tmp_path, i, "word " * (i % 4) + "end" * (i % 2)) for i in range(9)]
    one_by_one = encoder(tmp_path, HEAD + ENCODE_DATA, sign=True)
    at_once = encoder(tmp_path, HEAD + ENCODE_DATA + ENCODE_BATCH, sign=True)
    assert (one_by_one.function_name, at_once.function_name) == ("encode_data", "encode_batch")
    rows = one_by_one(documents)
    assert rows.equals(at_once(documents))
    assert rows["@position"].to_pylist() == [1, 2, 3, 5, 6, 7]
    assert one_by_one.tally == at_once.tally
    features = one_by_one.features_of(documents)
    assert [row["input_ids"].tolist() for row in features] == rows["input_ids"].to_pylist()
    assert [row["boxes"].tolist() for row in features] == rows["boxes"].to_pylist()
    assert at_once.tally.returned_none == {"a": 3}


def test_encode_batch_may_return_columns_and_arrays(tmp_path: Path) -> None:
    source = (
        HEAD
        + """
import numpy as np
def encode_batch(instances, context):
    ids = [np.array([len(word) for word in words(instance)], dtype=np.int64) for instance in instances]
    return {"input_ids": ids, "boxes": [np.stack([i, i], axis=1) for i in ids]}
"""
    )
    rows = encoder(tmp_path, source)([document(tmp_path, 0, "a bb"), document(tmp_path, 1, "ccc")])
    assert rows["input_ids"].to_pylist() == [[1, 2], [3]]
    assert rows["boxes"].to_pylist() == [[[1, 1], [2, 2]], [[3, 3]]]
    assert rows["@untruncated toy"].to_pylist() == [None, None]


def test_a_comparison_has_every_models_columns(tmp_path: Path) -> None:
    source = """
from datasets import Features, List, Value
def get_dataset_features(context):
    return Features({"input_ids": List(Value("int32")), **({"mask": Value("bool")} if context.model_name == "b" else {})})
def encode_data(instance, context):
    ids = [context.model_names.index(context.model_name)] * 3
    return {"input_ids": ids, "untruncated_length": 4, **({"mask": True} if context.model_name == "b" else {})}
"""
    both = encoder(tmp_path, source, models=("a", "b"))
    rows = both([document(tmp_path, 0, "x")])
    assert list(both.features) == ["a_input_ids", "b_input_ids", "b_mask"]
    assert rows.select(list(both.features)).to_pylist() == [
        {"a_input_ids": [0, 0, 0], "b_input_ids": [1, 1, 1], "b_mask": True}
    ]
    assert rows["@tokens b"].to_pylist() == [3]


IMAGES = """
import numpy as np
import datasets
from datasets import Features, List, Value

def get_dataset_features(context):
    features = {"pixels": datasets.Array3D((1, 2, 2), "uint8"), "boxes": List(List(Value("int32"), length=2))}
    if context.model_name == "both":
        features["ids"] = List(List(Value("int32")))
    return Features(features)

def encode_data(instance, context):
    encoded = {"pixels": np.full((1, 2, 2), 255, dtype=np.uint8), "boxes": [[1, 2]] * 3}
    if context.model_name == "both":
        encoded["ids"] = [[1, 2, 3], [4]]
    return encoded
"""


def test_images_and_boxes_are_no_tokens(tmp_path: Path) -> None:
    alone = encoder(tmp_path, IMAGES, sign=True)
    rows = alone([document(tmp_path, index, "word") for index in range(2)])
    assert alone.near_duplicate_feature is None
    assert rows[SIGNATURE].to_pylist() == [None, None]
    assert rows["@tokens toy"].to_pylist() == [None, None]


def test_near_duplicates_are_found_by_the_first_model_that_has_tokens(tmp_path: Path) -> None:
    compared = encoder(tmp_path, IMAGES, models=("image", "both"), sign=True)
    rows = compared([document(tmp_path, 0, "word")])
    assert compared.near_duplicate_feature == "ids"
    assert rows[SIGNATURE].to_pylist() == [compute_signatures([np.array([1, 2, 3, 4])])[0].tobytes()]
    assert (rows["@tokens image"].to_pylist(), rows["@tokens both"].to_pylist()) == ([None], [4])
    assert rows["both_ids"].to_pylist() == [[[1, 2, 3], [4]]]


def test_the_digest_of_a_document_is_what_it_always_was(tmp_path: Path) -> None:
    """Data versions hash it: name, lengths and values of every feature."""
    rows = encoder(tmp_path, HEAD + ENCODE_DATA)([document(tmp_path, 0, "one three")])
    expected = hashlib.sha256()
    for name, lengths, values in (("input_ids", [2], [3, 5]), ("boxes", [2, 2], [3, 4, 5, 6])):
        expected.update(json.dumps([name, lengths]).encode())
        expected.update(np.array(values, dtype=np.int64).tobytes())
    assert rows[DIGEST].to_pylist() == [expected.digest()]


def test_the_digest_tells_how_ragged_lists_are_cut(tmp_path: Path) -> None:
    first, second = (IMAGES.replace("[[1, 2, 3], [4]]", pages) for pages in ("[[1, 2], [3, 4]]", "[[1], [2, 3, 4]]"))
    digests = {
        encoder(tmp_path, source, models=("both", "image"))([document(tmp_path, 0, "word")])[DIGEST][0].as_py()
        for source in (IMAGES, first, second)
    }
    assert len(digests) == 3


PICTURES = """
import datasets
import numpy as np

def get_dataset_features(context):
    return datasets.Features({"pages": datasets.List(datasets.Image())})

def encode_data(instance, context):
    path = instance["raw_text.json"]
    return {"pages": [path, np.zeros((2, 2, 3), np.uint8)]}
"""


def test_a_damaged_picture_is_a_failure_and_a_wrong_value_a_wrong_encoder(tmp_path: Path) -> None:
    pixels = np.full((2, 3, 3), 7, dtype=np.uint8)
    png = read_pictures(pixels).content
    documents = [document(tmp_path, index, content) for index, content in enumerate([png, png[:-30], b"", png])]
    found = encoder(tmp_path, PICTURES, sign=True)
    rows = found(documents)
    assert rows["@position"].to_pylist() == [0, 3]
    assert rows["pages"][0][0]["bytes"].as_py() == png
    assert rows["pages"][0][0]["path"].as_py() is None
    assert [(failure.artifact_guid, failure.file) for failure in found.tally.failures] == [
        ("guid-1", "1.json"),
        ("guid-2", "2.json"),
    ]
    assert "feature 'pages': the picture cannot be read: " in found.tally.failures[0].error
    assert (found.near_duplicate_feature, rows["@tokens toy"].to_pylist()) == (None, [None, None])
    (row, _) = found.features_of(documents)
    assert [page.shape for page in row["pages"]] == [(3, 2, 3), (3, 2, 2)]
    same = encoder(tmp_path, PICTURES.replace("[path,", "[np.full((2, 3, 3), 7, np.uint8),"))
    assert same(documents[:1])[DIGEST] == rows[DIGEST][:1], "the pixels count, not the file that holds them"
    fewer = encoder(tmp_path, PICTURES.replace("[path, np.zeros((2, 2, 3), np.uint8)]", "[path]"))
    assert fewer(documents[:1])[DIGEST] != rows[DIGEST][:1]
    for wrong, said in (
        ("path", "expected a list of pictures"),
        ("[np.zeros((3, 2, 2))]", r"a float64 array \[3, 2, 2\], expected a picture: "),
    ):
        with pytest.raises(UserCodeError, match=f"guid-0.*feature 'pages': found .*{said}"):
            encoder(tmp_path, PICTURES.replace("[path, np.zeros((2, 2, 3), np.uint8)]", wrong))(documents[:1])


def test_what_a_prediction_reads_is_what_a_server_gets(tmp_path: Path) -> None:
    """Of pages, also of a fixed number: the rows on disk, fetched, and those that are not stored."""
    for feature in ("List(datasets.Image())", "List(datasets.Image(), length=2)", "LargeList(datasets.Image())"):
        found = encoder(tmp_path, PICTURES.replace("List(datasets.Image())", feature))
        png = read_pictures(np.full((2, 3, 3), 7, dtype=np.uint8)).content
        inputs = [document(tmp_path, index, png) for index in range(2)]
        with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, found.schema) as writer:
            writer.write_table(found(inputs))
        own = [document.guid for document in inputs]
        documents = Documents(own, ["a"] * 2, [None] * 2, [], [], ("a",), {})
        write_unlabelled([tmp_path / "rows.arrow"], documents, found.features, tmp_path / "rows")
        data = datasets.load_from_disk(str(tmp_path / "rows"))
        assert data[1]["pages"][0].size == (3, 2)
        for stored, sent in zip(fetch(data, np.arange(2)), found.features_of(inputs), strict=True):
            assert [page.tolist() for page in stored["pages"]] == [page.tolist() for page in sent["pages"]]


@pytest.mark.parametrize("feature", ["Image(mode='L')", "Image(decode=False)", "List(datasets.List(datasets.Image()))"])
def test_pictures_that_are_no_rgb_pixels_are_refused(tmp_path: Path, feature: str) -> None:
    source = PICTURES.replace("List(datasets.Image())", feature)
    with pytest.raises(DataError, match=r"feature 'pages' is declared as .* expected .*Image\(\) or List\(Image\(\)\)"):
        encoder(tmp_path, source)([document(tmp_path, 0, "x")])


def test_a_mask_tells_the_tokens_of_a_document_that_the_user_padded(tmp_path: Path) -> None:
    source = """
from datasets import Features, List, Value
def get_dataset_features(context):
    return Features({"input_ids": List(Value("int32"), length=6), "attention_mask": List(Value("int8"), length=6)})
def encode_data(instance, context):
    return {"input_ids": [5, 6, 0, 0, 0, 0], "attention_mask": [1, 1, 0, 0, 0, 0]}
"""
    assert encoder(tmp_path, source)([document(tmp_path, 0, "x")] * 2)["@tokens toy"].to_pylist() == [2, 2]


def test_signatures_are_over_the_tokens(tmp_path: Path) -> None:
    rows = encoder(tmp_path, HEAD + ENCODE_DATA, sign=True)([document(tmp_path, 0, "a bb ccc dddd")])
    assert rows[SIGNATURE].to_pylist() == [compute_signatures([np.array([1, 2, 3, 4])])[0].tobytes()]


def test_the_digest_tells_values_apart_and_not_types(tmp_path: Path) -> None:
    same = [document(tmp_path, 0, "a bb")]
    narrow = encoder(tmp_path, HEAD + ENCODE_DATA)(same)[DIGEST]
    assert encoder(tmp_path, HEAD.replace("uint16", "int64") + ENCODE_DATA)(same)[DIGEST] == narrow
    assert encoder(tmp_path, HEAD + ENCODE_DATA.replace("[i, i + 1]", "[i, i]"))(same)[DIGEST] != narrow


@pytest.mark.parametrize("batch", ["", ENCODE_BATCH])
def test_a_file_that_cannot_be_read_is_a_failure_and_the_others_are_encoded(tmp_path: Path, batch: str) -> None:
    contents: list[bytes | str | None] = ["good", b"{broken", b"", b'{"text": "\xff\xfe"}', None, "fine"]
    found = encoder(tmp_path, HEAD + ENCODE_DATA + batch)
    rows = found([document(tmp_path, index, content, "b") for index, content in enumerate(contents)])
    assert rows["@position"].to_pylist() == [0, 5]
    assert found.tally.failed == {"b": 4}
    broken, empty, not_utf8, missing = found.tally.failures
    assert (broken.artifact_guid, broken.label, broken.file) == ("guid-1", "b", "raw_text.json")
    assert "JSONDecodeError" in broken.error
    assert "user_defined_funcs.py, line 8, in words: return json.loads" in broken.error
    assert "JSONDecodeError" in empty.error
    assert "UnicodeDecodeError" in not_utf8.error
    assert missing.error == "raw_text.json: the artifact has no such file"


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ('{"input_ids": "abc", "boxes": []}', "feature 'input_ids': found text, expected uint16[*]"),
        ('{"input_ids": [1.5], "boxes": []}', "feature 'input_ids': found float64 values, expected uint16[*]"),
        ('{"input_ids": [1, None], "boxes": []}', "feature 'input_ids': found None, expected uint16[*]"),
        ('{"input_ids": [1]}', "feature 'boxes' is missing; found ['input_ids'], expected ['input_ids', 'boxes']"),
        ('{"input_ids": [1], "boxes": [], "extra": 1}', "feature 'extra' is not declared"),
        (
            '{"input_ids": [1], "boxes": [[1, 2], [3]]}',
            "feature 'boxes': found length 1 on axis 1, expected int32[*, 2]",
        ),
        ('{"input_ids": [1], "boxes": [[1, 2, 3]]}', "feature 'boxes': found length 3 on axis 1, expected int32[*, 2]"),
        ('{"input_ids": [70000], "boxes": []}', "feature 'input_ids': found 70000, expected uint16[*]: 0 to 65535"),
        ("[1, 2]", "found list [1, 2], expected a dict of ['input_ids', 'boxes'] or None"),
        ('{"input_ids": [1], "boxes": [], "untruncated_length": "9"}', "untruncated_length is str '9'"),
    ],
)
@pytest.mark.parametrize("function", ["encode_data", "encode_batch"])
def test_a_wrong_encoder_is_named_with_feature_and_artifact(
    tmp_path: Path, returned: str, complaint: str, function: str
) -> None:
    right = '{"input_ids": [1], "boxes": [[1, 2]]}'
    source = (
        HEAD
        + f"\ndef encode_data(instance, context):\n    return {returned} if words(instance) == ['bad'] else {right}\n"
    )
    wrong = encoder(tmp_path, source + (ENCODE_BATCH if function == "encode_batch" else ""))
    with pytest.raises(UserCodeError) as error:
        wrong([document(tmp_path, 0, "good"), document(tmp_path, 1, "bad", "b")])
    assert complaint in str(error.value)
    assert f"{function} returned a wrong encoding for artifact guid-1 (label 'b')" in str(error.value)


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ("[None]", "a list of 2"),
        ("7", "a list of 2"),
        ('{"input_ids": [[1]], "boxes": [[], []]}', "feature 'input_ids'"),
    ],
)
def test_encode_batch_answers_for_every_document(tmp_path: Path, returned: str, complaint: str) -> None:
    wrong = encoder(tmp_path, HEAD + f"def encode_batch(instances, context):\n    return {returned}\n")
    with pytest.raises(UserCodeError, match=r"for 2 documents from artifact guid-0") as error:
        wrong([document(tmp_path, 0, "x"), document(tmp_path, 1, "y")])
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("features", "error", "complaint"),
    [
        ('{"labels": Value("int64")}', UserCodeError, "declares ['labels']"),
        ("{}", UserCodeError, "declares no feature"),
        ('{"text": Value("string")}', DataError, "feature 'text'"),
        ('{"parts": {"a": Value("int32")}}', DataError, "feature 'parts'"),
    ],
)
def test_features_that_cannot_become_tensors_are_refused(
    tmp_path: Path, features: str, error: type[Exception], complaint: str
) -> None:
    source = (
        f"from datasets import *\ndef get_dataset_features(context):\n    return Features({features})\n" + ENCODE_DATA
    )
    with pytest.raises(error) as refused:
        _ = encoder(tmp_path, source).schema
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    "padding", ['{"input_ids": 1, "attention_mask": 0}', '{"input_ids": 1, "input_ids_of_another": 1}', '{"words": 1}']
)
def test_padding_of_a_feature_or_of_another_models(tmp_path: Path, padding: str) -> None:
    assert encoder(tmp_path, f"{HEAD}{ENCODE_DATA}\nPADDING = {padding}\n").schema.names


def test_padding_of_one_of_two_alike(tmp_path: Path) -> None:
    source = HEAD.replace('"input_ids"', '"input_ids_b": List(Value("int32")), "input_ids_a"')
    assert source != HEAD
    assert encoder(tmp_path, f'{source}{ENCODE_DATA}\nPADDING = {{"input_ids_a": 1}}\n').schema.names


def test_misspelt_padding_is_named(tmp_path: Path) -> None:
    misspelt = encoder(tmp_path, HEAD + ENCODE_DATA + '\nPADDING = {"input_idz": 1}\n')
    with pytest.raises(UserCodeError, match=r"PADDING names input_idz; expected .* did you mean input_ids\?"):
        _ = misspelt.schema


def test_one_of_the_two_encoders_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match="neither encode_data nor encode_batch"):
        encoder(tmp_path, HEAD)


def test_what_is_being_encoded_is_told(tmp_path: Path) -> None:
    heard: list[Any] = []
    documents = [document(tmp_path, 3, "x"), document(tmp_path, 4, b"{"), document(tmp_path, 5, "y")]
    for source in (HEAD + ENCODE_DATA, HEAD + ENCODE_DATA + ENCODE_BATCH):
        plain = encoder(tmp_path, source)
        Encoder(plain.functions, plain.contexts, False, lambda first, count: heard.append((first, count)))(documents)
    assert heard == [(3, 1), (4, 1), (5, 1), (3, 3), (3, 1), (4, 1), (5, 1)]
