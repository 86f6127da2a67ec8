"""The package's exceptions; the tree is drawn in `docml_contract/__init__.py`."""


class ContractError(Exception):
    """Something that crossed the boundary between orchestrator and container is not what was agreed."""


class BadName(ContractError):
    """An experiment, model, file or GUID name that is not allowed."""


class BadHyperparameter(ContractError):
    """A hyperparameter value that is out of range or of the wrong type."""


class IncompleteArtifact(ContractError):
    """A manifest names files that are missing or differ."""


class ProcessFuncBroken(ContractError):
    """The worker's Python cannot load user_defined_funcs.py."""


class UnreadableDocument(ContractError):
    """JSON or schema of a spec, manifest or output is wrong."""
