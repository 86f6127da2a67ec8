"""Exceptions of reconciliation, below `DocmlError`.

ReconciliationError      labels and files do not come together
├── NothingLeft          no artifact passed all stages
├── TooManyFailures      more artifacts failed than MAX_FAILED_SHARE allows
└── ProcessFuncBroken    the worker's Python cannot load user_defined_funcs.py
"""

from docml_assets.errors import DocmlError


class ReconciliationError(DocmlError):
    """Labels and files do not come together."""


class NothingLeft(ReconciliationError):
    """No artifact passed all stages."""


class TooManyFailures(ReconciliationError):
    """More artifacts failed than MAX_FAILED_SHARE allows."""


class ProcessFuncBroken(ReconciliationError):
    """The worker's Python cannot load user_defined_funcs.py."""
