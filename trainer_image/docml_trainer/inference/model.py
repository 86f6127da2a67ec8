"""An exported model as production loads it: TorchScript and export.json, both verified before anything is deserialized."""

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch

from docml_contract import names
from docml_contract.file_names import is_optional
from docml_contract.jobs import ExportedModel, PrepareTask
from docml_contract.manifests import Manifest, ModelContext, sha256_file, verify_folder
from docml_contract.policy import Policy
from docml_contract.use_cases import UseCaseCode
from docml_trainer.data.classifier import find_logits
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import fetch
from docml_trainer.data.shapes import ARTIFACT_GUID
from docml_trainer.errors import DataError, FolderError, ModelFileError
from docml_trainer.functions import Context

Floats = npt.NDArray[np.float32]
DEVICE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.02}  # of a probability, between the GPU and the CPU


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, whose hashes matched what the orchestrator recorded when it published them."""

    name: str
    folder: Path
    export: Mapping[str, Any]  # export.json
    torchscript_sha256: str
    export_sha256: str

    @classmethod
    def verify(cls, name: str, channel: Path, expected: ExportedModel) -> "ModelFiles":
        """ModelFileError if a file is missing or its content is not the one that was published."""
        folder = channel / expected.path
        for file, sha256 in ((names.TORCHSCRIPT, expected.torchscript_sha256), (names.EXPORT, expected.export_sha256)):
            path = folder / file
            if not path.is_file():
                raise ModelFileError(
                    f"{path}: no such file; expected the exported model {name!r} in the channel 'models'"
                )
            found = sha256_file(path)
            if found != sha256:
                raise ModelFileError(
                    f"{expected.path}/{file} of model {name!r}: its content has sha256 {found}, expected {sha256} as its manifest "
                    "says; the file was changed after training and is not loaded: remove the folder "
                    f"{expected.path} of the experiment from the store and execute the run again, which makes it anew"
                )
        export = json.loads((folder / names.EXPORT).read_text(encoding="utf-8"))
        return cls(name, folder, export, expected.torchscript_sha256, expected.export_sha256)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model's outputs stand for, in order."""
        return tuple(self.export["labels"])

    @property
    def arithmetic(self) -> str:
        """In what it computes: `float32` or `bfloat16`."""
        return str(self.export.get("arithmetic", "float32"))

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the export holds at; None if any will do."""
        fixed = self.export.get("fixed_shape")
        return None if not fixed else int(next(iter(fixed.values()))[0])

    def collator(self, features: datasets.Features, prefix: str) -> Collator:
        """Makes of encoded documents the batches that the model was exported for."""
        return Collator(
            features,
            self.export["padding"],
            prefix=prefix,
            forward_parameters=self.export["input_keys"],
            fixed_shape=self.export.get("fixed_shape"),
        )


class TorchScriptModel:
    """One loaded model on one device. `features`: of the encoded documents, with those of other models."""

    def __init__(self, files: ModelFiles, features: datasets.Features, prefix: str, device: str) -> None:
        self.files, self.device = files, torch.device(device)
        self.collate = files.collator(features, prefix)
        self.keys: Sequence[str] = files.export["input_keys"]
        missing = [key for key in self.keys if key not in self.collate.feature_names]
        if missing:
            raise DataError(
                f"model {files.name!r} takes {', '.join(self.keys)}; the documents lack {', '.join(missing)} "
                f"(found {', '.join(self.collate.feature_names)}): they were prepared for another model"
            )
        self.dtypes = [getattr(torch, files.export["input_dtypes"][key]) for key in self.keys]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated, and what production loads
            module = torch.jit.load(str(files.folder / names.TORCHSCRIPT), map_location=self.device)
        make_tensors_on(self.device, module)
        if self.device.type == "cuda":  # the first calls, and those of a new batch size, would compile for 50 to 300 ms
            torch._C._jit_set_profiling_mode(False)
        self.module = module.eval()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Logits float32[rows, labels]. DataError names a document for which the model answers with NaN or infinity."""
        batch = self.collate(rows)
        inputs = [batch[key].to(self.device, dtype) for key, dtype in zip(self.keys, self.dtypes, strict=True)]
        with torch.inference_mode():
            answer = self.module(*inputs)
        output = find_logits(answer)
        if output is None:
            raise ModelFileError(f"the TorchScript model returned {type(answer).__name__}, expected logits")
        if output.ndim != 2 or output.shape[0] < len(rows) or output.shape[1] != len(self.files.labels):
            raise DataError(
                f"model {self.files.name!r}: found logits of shape {list(output.shape)} for {len(rows)} documents, "
                f"expected one row per document and {len(self.files.labels)} labels"
            )
        logits = output[: len(rows)].float().cpu().numpy()  # an export of one shape was filled up with repeated rows
        wrong = ~np.isfinite(logits).all(axis=1)
        if wrong.any():
            guid = rows[int(np.flatnonzero(wrong)[0])][ARTIFACT_GUID]
            raise DataError(
                f"model {self.files.name!r} answers with NaN or infinity for {int(wrong.sum())} of {len(rows)} documents, "
                f"artifact {guid} among them; expected finite logits (did the training diverge?)"
            )
        return np.asarray(logits, dtype=np.float32)


def make_tensors_on(device: torch.device, module: torch.jit.ScriptModule) -> None:
    """Have a module, which has not run yet, make tensors of its own (positions, masks) on `device`, where torch.jit.load has put its weights.

    A trace names the device on which the model made them when it was traced.
    """
    for part in module.modules():
        script: Any = part._c  # of C++
        for name in script._method_names():
            for node in script._get_method(name).graph.findAllNodes("prim::Constant"):
                if node.output().type().kind() == "DeviceObjType":
                    node.s_("value", str(device))


def objection_to_gpu(files: ModelFiles, on_gpu: Callable[[], Floats], on_cpu: Floats) -> str | None:
    """Why a model has to stay on the CPU: a GPU does not give the logits, or those of other probabilities. None where it may take the GPU."""
    try:
        difference = float(np.abs(softmax(on_gpu()) - softmax(on_cpu)).max())
    except RuntimeError as error:  # whatever TorchScript and CUDA raise
        return f"{files.name} does not run on the GPU as it was traced; it runs on the CPU. {str(error).strip()[-300:]}"
    if difference > DEVICE_TOLERANCE[files.arithmetic]:
        return f"{files.name} answers differently on the GPU (by {difference:.1e}); it runs on the CPU."
    return None


class CheckedModel:
    """A model whose first answers decide where it runs: on the GPU, if it answers there as on the CPU. `object_to` learns why it does not."""

    def __init__(self, on_gpu: TorchScriptModel, on_cpu: TorchScriptModel, object_to: Callable[[str], None]) -> None:
        self._chosen, self._reference, self._object_to = on_gpu, on_cpu, object_to
        self._is_decided = False
        self.files, self.collate = on_gpu.files, on_gpu.collate

    @property
    def device(self) -> torch.device:
        """Where it runs, as far as is known."""
        return self._chosen.device

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """As TorchScriptModel answers."""
        if self._is_decided:
            return self._chosen(rows)
        answer = self._reference(rows)
        if objection := objection_to_gpu(self.files, lambda: self._chosen(rows), answer):
            self._object_to(objection)
            self._chosen = self._reference
        del self._reference
        self._is_decided = True
        return answer


class Predictor:
    """A loaded model over the rows of a data set."""

    def __init__(self, files: ModelFiles, data: datasets.Dataset, prefix: str, device: str) -> None:
        self.files, self.prefix = files, prefix
        self.data = self._columns(data)
        self.model = TorchScriptModel(files, data.features, prefix, device)

    def over(self, data: datasets.Dataset) -> "Predictor":
        """The same loaded model over another data set with the same features."""
        other = copy.copy(self)
        other.data = self._columns(data)
        return other

    def _columns(self, data: datasets.Dataset) -> datasets.Dataset:
        return data.select_columns([ARTIFACT_GUID, *(name for name in data.features if name.startswith(self.prefix))])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def __call__(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Logits float32[rows, labels] of the rows with these numbers."""
        return self.model(fetch(self.data, rows))


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Probabilities float64[documents, labels], in double precision."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class DeploymentFolder:
    """A model with everything that its answers need."""

    folder: Path
    context: ModelContext
    model: ModelFiles
    policy: Policy | None
    use_case: UseCaseCode | None = None

    @classmethod
    def open(cls, folder: Path, manifest_sha256: str | None) -> "DeploymentFolder":
        """Verify every file against the manifest, and the manifest against its hash where one is known.

        FolderError if there is no deployment folder, ModelFileError or IncompleteArtifact if it is not the one that was published.
        """
        path = folder / names.MANIFEST
        if not path.is_file():
            raise FolderError(f"{path}: no such file; expected a deployment folder (run_<N>/deployment/<model>)")
        found = sha256_file(path)
        if manifest_sha256 is not None and found != manifest_sha256:
            raise ModelFileError(
                f"{path}: its content has sha256 {found}, expected {manifest_sha256}; the deployment folder is not the one that was "
                "asked for, and nothing of it is loaded (restore it, or deploy the model again)"
            )
        manifest = Manifest.from_bytes(path.read_bytes(), str(path))
        remedy = f"It is damaged: remove {manifest.experiment}/run_{manifest.run}/deployment from the store and ask again, which makes it anew"
        verify_folder(folder, manifest.files, remedy=remedy)
        context = ModelContext.from_bytes((folder / names.MODEL_CONTEXT).read_bytes(), names.MODEL_CONTEXT)
        expected = ExportedModel(
            path=folder.name,
            torchscript_sha256=manifest.file(names.TORCHSCRIPT).sha256,
            export_sha256=manifest.file(names.EXPORT).sha256,
        )
        model = ModelFiles.verify(context.model_name, folder.parent, expected)
        if model.labels != context.labels:
            raise ModelFileError(
                f"{folder}: the model's {len(model.labels)} labels are not the {len(context.labels)} of {names.MODEL_CONTEXT}, "
                "in its order; expected the same (prepare, train and deploy again)"
            )
        there = {entry.path for entry in manifest.files}
        policy, use_case = None, None
        if names.POLICY in there:
            policy = Policy.from_bytes((folder / names.POLICY).read_bytes(), names.POLICY)
        if names.USE_CASE_CODE in there:
            use_case = UseCaseCode.from_bytes((folder / names.USE_CASE_CODE).read_bytes(), names.USE_CASE_CODE)
        return cls(folder, context, model, policy, use_case)

    def accepts(self, probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_] | None:
        """Which answers may be accepted without a person: bool[...] for float32 or float64[..., labels]; None without a decision policy."""
        return None if self.policy is None else np.asarray(self.policy.accepts(probabilities))

    @property
    def has_units(self) -> bool:
        """Whether the model's documents are units of those that are asked about."""
        return self.use_case is not None and self.use_case.units

    @property
    def functions(self) -> Path:
        """The experimenter's code, as it was frozen."""
        return self.folder / names.USER_FUNCTIONS

    @property
    def encoding_context(self) -> Context:
        """What encode_data is told."""
        content = self.context
        return Context.of(content.model_name, content.model_names, content.labels, content.own_hyperparameters)

    @property
    def prefix(self) -> str:
        """Of the model's columns."""
        return names.column_prefix(self.context.model_name, self.context.model_names)

    def encoding_task(self, processes: int | None) -> PrepareTask:
        """The preparation that documents without labels go through: nothing is left out, nothing compared or split."""
        content = self.context
        return PrepareTask(
            model_names=content.model_names,
            own_hyperparameters=content.own_hyperparameters,
            model_input_files=content.model_input_files,
            optional_files=tuple(e for e in content.model_input_files if is_optional(e, content.optional_files)),
            near_duplicate_threshold=1.0,
            processes=processes,
        )
