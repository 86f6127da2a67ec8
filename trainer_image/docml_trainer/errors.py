"""The package's exceptions; the tree is drawn in `docml_trainer/__init__.py`."""


class TrainerError(Exception):
    """The job cannot be done as asked. The message is the job's reason; it needs no traceback."""


class FolderError(TrainerError):
    """The job's folder is not laid out as the contract says."""


class UserCodeError(TrainerError):
    """A function in user_defined_funcs.py is missing, raised, or returned the wrong thing."""


class DataError(TrainerError):
    """The documents, tables or encoded rows are not what the job needs."""


class PictureError(DataError):
    """A picture cannot be read. `file` names it, where it was one."""

    def __init__(self, message: str, file: str | None = None) -> None:
        super().__init__(message)
        self.file = file


class TrainingError(TrainerError):
    """The training diverged, ran out of memory, or lost a process."""


class ExportError(TrainerError):
    """The TorchScript model is not the trained model."""


class ModelFileError(TrainerError):
    """An exported model is missing, was changed after training, or is not what its export.json says."""


class Stopped(SystemExit):
    """The end of a process that was told to stop: not the experimenter's, whose sys.exit() is a failure of their function."""
