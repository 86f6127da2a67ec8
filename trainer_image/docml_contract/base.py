"""The base of every model that crosses a boundary, and the one canonical JSON that hashes are made of."""

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError


class Document(BaseModel):
    """A frozen pydantic model without extra fields, with readable errors when parsed from bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_bytes(self) -> bytes:
        """UTF-8 JSON, indented, ending in a newline."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Self:
        """Parse what `to_bytes` wrote. `source` names the object in the error (UnreadableDocument)."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise UnreadableDocument(
                f"{source}: {where}: {first['msg']} (expected a {cls.__name__} written by docml; "
                "if the file was edited by hand, restore it, otherwise report it)"
            ) from error


def _check_moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    return text


# ISO 8601 with its offset, as `utc_now` writes it: whoever reads one may calculate with it.
Moment = Annotated[str, AfterValidator(_check_moment)]


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes. NaN and infinities raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def short(hexdigest: str) -> str:
    """The 16 hex digits used in folder names: 64 bits, ample within one experiment."""
    return hexdigest[:16]


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


class UseCaseError(ContractError):
    """A function of a use case does not do what it should."""


class UnreadableDocument(ContractError):
    """JSON or schema of a spec, manifest or output is wrong."""
