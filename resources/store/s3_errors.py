"""obstore's errors as the store's."""

from typing import Any

from obstore.exceptions import BaseError, InvalidPathError

from resources.errors import StoreError
from resources.store.store import missing

# obstore's errors that no further attempt changes
REFUSALS = ("PermissionDeniedError", "UnauthenticatedError")


class StoreErrors:
    """Turns what obstore raises in its block into the store's errors, with the object's URI and a remedy."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise missing(self.uri) from None
        if isinstance(error, BaseError) and not isinstance(error, InvalidPathError):
            raise store_error(self.uri, error) from error


def store_error(uri: str, error: BaseError) -> StoreError:
    """The store's error for one of obstore's."""
    remedy = "the service refused or could not be reached"
    if type(error).__name__ in REFUSALS:
        remedy = "check the credentials (the standard AWS chain) and what they may do in this bucket"
    detail = str(error).split("\n\nDebug source")[0].strip()
    return StoreError(f"{uri}: {detail[:600]} ({remedy})")
