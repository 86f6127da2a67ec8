"""One object store, on a folder or on S3, behind one interface: `from resources.store import Store`.

Beside it: `manifests` (finished folders). Everything else is inside.
"""

from resources.store.objects import (
    LINK_SIZE,
    PARALLEL_COPIES,
    PARALLEL_FILES,
    TABLE_SCHEMA,
    MissingSource,
    StoreBackend,
    StoredObject,
    missing_key,
    refusals,
)
from resources.store.store import Store, canonical_url

__all__ = [
    "LINK_SIZE",
    "PARALLEL_COPIES",
    "PARALLEL_FILES",
    "TABLE_SCHEMA",
    "MissingSource",
    "Store",
    "StoreBackend",
    "StoredObject",
    "canonical_url",
    "missing_key",
    "refusals",
]
