"""A deployment folder, verified before anything of it is loaded."""

from dataclasses import dataclass
from pathlib import Path

from docml_contract import names
from docml_contract.file_names import is_optional
from docml_contract.jobs import ExportedModel, PrepareTask
from docml_contract.manifests import Manifest, ModelContext, sha256_file, verify_folder
from docml_trainer.errors import FolderError, ModelFileError
from docml_trainer.functions import Context
from docml_trainer.inference.model import ModelFiles


@dataclass(frozen=True)
class DeploymentFolder:
    """A model with everything that its answers need."""

    folder: Path
    context: ModelContext
    model: ModelFiles

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
        verify_folder(folder, manifest.files)
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
        return cls(folder, context, model)

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
