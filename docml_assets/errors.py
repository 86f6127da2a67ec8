"""The package's base exceptions; the tree is drawn in `docml_assets/__init__.py`."""

from docml_contract.base import ContractError
from resources.errors import ResourceError


class DocmlError(Exception):
    """The input is wrong or the work cannot go on."""


class ExperimentError(DocmlError):
    """An experiment folder is missing or unreadable."""


class ReportError(DocmlError):
    """Predictions, or what accompanies them, cannot be reported on."""


# Errors whose message says what was found, what was expected and the remedy: nobody needs their traceback.
EXPLAINED_ERRORS = (DocmlError, ContractError, ResourceError)
