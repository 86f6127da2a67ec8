"""The package's exceptions; the tree is drawn in `resources/__init__.py`."""

from docml_contract.base import UnreadableDocument


class ResourceError(Exception):
    """Something outside the process refused, failed or was set up wrongly."""


class StoreError(ResourceError):
    """An object store refused or failed."""


class MissingKey(StoreError):
    """No object has this key."""


class UnreadableFile(StoreError, UnreadableDocument):
    """One file that is there and cannot be read: damage of what it belongs to, and no reason to stop at anything else."""


class UnsafeKey(StoreError):
    """A key that no store is asked for."""


class UnsafeFile(StoreError):
    """A file that does not enter a store: a symbolic link."""


class LabelError(ResourceError):
    """The label source refused or failed."""


class RefusedQuery(LabelError):
    """The query is not one read-only SELECT; nothing was sent."""


class TooManyRows(LabelError):
    """More rows than MAX_LABEL_ROWS."""


class SettingError(ResourceError):
    """A setting of the deployment is missing or wrong."""
