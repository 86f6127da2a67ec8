"""Pictures as files: what is stored, what is read again, what is refused; and that they are to a model what arrays of pixels are."""

import io
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from docml_contract.jobs import ExportedModel
from docml_contract.manifests import sha256_file
from docml_trainer.__main__ import main
from docml_trainer.data import pictures as module
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import fetch
from docml_trainer.data.pictures import decode_picture, read_pictures
from docml_trainer.errors import DataError, PictureError
from tests.docml_trainer.inferences import write_spec
from tests.docml_trainer.jobfolder import JobFolder
from tests.docml_trainer.preparations import Doc, metadata_of, preparation
from tests.docml_trainer.trainings import run_here, training_job, weights

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def file_of(pixels: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_a_file_is_stored_as_it_is_and_equal_pixels_are_equal(tmp_path: Path) -> None:
    png, bitmap = file_of(PIXELS), file_of(PIXELS, "BMP")
    (tmp_path / "page.png").write_bytes(png)
    path = tmp_path / "page.png"
    found = read_pictures([path, str(path), png, bitmap, PIXELS, Image.fromarray(PIXELS)])
    assert [picture.content for picture in found[:4]] == [png, png, png, bitmap]
    assert len({picture.digest for picture in found}) == 1
    for picture in found:
        pixels = decode_picture(picture.content)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, PIXELS.transpose(2, 0, 1))
    assert read_pictures(PIXELS.reshape(30, 20, 3)).digest != found[0].digest


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_pixels_are_those_that_datasets_reads(kind: str) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a camera that was held upright
    content = file_of(PIXELS, kind, exif=turned)
    theirs = datasets.Image(mode="RGB").decode_example({"bytes": content, "path": None})
    assert theirs.size == (20, 30)
    assert np.array_equal(decode_picture(content).transpose(1, 2, 0), np.asarray(theirs))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_other_modes_become_red_green_and_blue(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    assert np.array_equal(
        decode_picture(read_pictures(image).content).transpose(1, 2, 0), np.asarray(image.convert("RGB"))
    )
    assert read_pictures(PIXELS[:, :, 0]).digest == read_pictures(np.stack([PIXELS[:, :, 0]] * 3, axis=2)).digest


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (file_of(PIXELS)[:-40], "the picture cannot be read: OSError: image file is truncated"),
        (b"no picture", "found no picture; expected one of PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "found no picture"),  # would start another program
        (Image.fromarray(np.full((2, 2), 60_000, np.uint16)), "found a picture of mode I;16; expected 8 bits"),
        (file_of(PIXELS, "TIFF", save_all=True, append_images=[Image.new("RGB", (2, 2))]), "found 2 pictures in one"),
        (np.zeros((40, 40, 3), np.uint8), "found 40 × 40 pixels; expected at most 1,000 (return a smaller picture)"),
        (Path("gone.png"), "FileNotFoundError"),
    ],
)
def test_what_cannot_be_read_is_said(wrong: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    with pytest.raises(PictureError) as error:
        read_pictures([PIXELS, wrong])
    assert found in str(error.value)
    assert error.value.file == ("gone.png" if isinstance(wrong, Path) else None)


def test_what_is_no_picture_comes_back_as_it_is() -> None:
    for other in (None, 3, {"bytes": b""}, PIXELS.astype(np.float32), PIXELS.transpose(2, 0, 1)):
        assert read_pictures(other) is other


def test_without_pillow_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = read_pictures(PIXELS)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for use in (lambda: read_pictures(b"x"), lambda: decode_picture(picture.content)):
        with pytest.raises(DataError, match="install it in the image"):
            use()


FUNCTIONS = """
import datasets

def get_dataset_features(context):
    page = datasets.Image() if context.model_name == "files" else datasets.Array3D((3, 6, 8), "uint8")
    return datasets.Features({"page": page})

def encode_data(instance, context):
    import numpy as np
    from PIL import Image

    path = instance["page.png"]
    return {"page": path if context.model_name == "files" else np.asarray(Image.open(path)).transpose(2, 0, 1)}

def load_model(model_name, context):
    import torch

    class Look(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = torch.nn.Linear(3 * 6 * 8, context.num_labels)

        def forward(self, page):
            assert page.dtype == torch.uint8
            return {"logits": self.classifier(page.flatten(1).float() / 255)}

    return Look()

def ordered_input_keys(model_name, context):
    return ["page"]
"""


def test_a_model_learns_from_files_what_it_learns_from_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of the two through preparation, training, export and inference: batches, weights and answers are equal."""
    random = np.random.default_rng(1)
    contents = [file_of(random.integers(0, 200 + 50 * (index % 2), (6, 8, 3), dtype=np.uint8)) for index in range(40)]
    docs = [
        Doc(f"doc-{index}", ("dark", "light")[index % 2], files={"page.png": content[: -30 if index == 7 else None]})
        for index, content in enumerate(contents)
    ]
    models = ("files", "arrays")
    job = preparation(
        *(tmp_path / "prepare", docs), functions=FUNCTIONS, model_names=models, model_input_files=("page.png",),
        processes=1, baseline=True, max_failed_share=0.1,
    )  # fmt: skip
    finished = job.run()
    assert finished.returncode == 0, job.failure
    content = metadata_of(job)
    assert content["features"] == {"files_page": "image[3, *, *]", "arrays_page": "uint8[3, 6, 8]"}
    (failure,) = content["failures"]
    assert (failure["artifact_guid"], failure["file"]) == ("doc-7", "page.png")
    assert failure["error"].startswith("feature 'page': the picture cannot be read: ")
    assert content["baseline"]["macro_f1"]["train"] > 0.5
    _check_split(job.output / "train", dict(zip((doc.guid for doc in docs), contents, strict=True)))

    inference = JobFolder(tmp_path / "infer", "infer")
    inference.fill_channel("test", job.output / "test")
    exported = {}
    jobs = {
        model: training_job(tmp_path / model, FUNCTIONS, model=model, models=models, splits=job.output)
        for model in models
    }
    for model, training in jobs.items():
        assert run_here(training, monkeypatch) == 0, training.failure
        (inference.channel("models") / model).symlink_to(training.output)
        hashes = [sha256_file(training.output / file) for file in ("model.pt", "export.json")]
        exported[model] = ExportedModel(path=model, torchscript_sha256=hashes[0], export_sha256=hashes[1])
    of_files, of_arrays = (weights(training) for training in jobs.values())
    assert all(torch.equal(values, of_arrays[name]) for name, values in of_files.items())
    write_spec(inference, exported)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(inference.base))
    assert main(["infer"]) == 0, inference.failure
    rows = pq.read_table(inference.output / "documents.parquet").to_pylist()
    assert len(rows) == content["documents"]["test"]
    assert all(row["files_probabilities"] == row["arrays_probabilities"] for row in rows)


def _check_split(folder: Path, contents: dict[str, bytes]) -> None:
    """The files are stored as they were, `datasets` reads them, and batches are those of arrays."""
    data = datasets.load_from_disk(str(folder))
    stored = data.cast_column("files_page", datasets.Image(decode=False))
    assert all(row["files_page"]["bytes"] == contents[row["artifact_guid"]] for row in stored)
    assert data[0]["files_page"].size == (8, 6)
    rows = fetch(data, np.arange(5))
    files, arrays = (Collator(data.features, prefix=prefix)(rows)["page"] for prefix in ("files_", "arrays_"))
    assert files.dtype == torch.uint8
    assert torch.equal(files, arrays)
