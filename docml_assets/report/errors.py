"""The report's exception; the package's tree is drawn in `docml_assets/__init__.py`."""

from docml_assets.errors import DocmlError


class ReportError(DocmlError):
    """Predictions, or what accompanies them, cannot be reported on."""
