"""The package's base exceptions; the tree is drawn in `docml_assets/__init__.py`."""


class DocmlError(Exception):
    """The input is wrong or the work cannot go on."""


class ExperimentError(DocmlError):
    """An experiment folder is missing or unreadable."""


class ReportError(DocmlError):
    """Predictions, or what accompanies them, cannot be reported on."""
