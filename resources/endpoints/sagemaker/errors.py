"""What AWS says of endpoints when it refuses -> what is done about it. Jobs' errors are the base of it."""

import re

from resources.endpoints.interface import BusyEndpoint, EndpointFailed, EndpointRefused, EndpointUnreachable
from resources.jobs.backend import Busy, NameTaken, NoCapacity
from resources.jobs.interface import JobError, JobUnreachable
from resources.jobs.sagemaker.errors import NoSuchJob, translate

_EXISTS = re.compile(r"already existing|already exists", re.IGNORECASE)
_MISSING = re.compile(r"Could not find|No scalable target|ResourceNotFound", re.IGNORECASE)
_CHANGING = re.compile(r"in-progress|in progress|currently (being )?(used|updat)", re.IGNORECASE)


class Missing(Exception):
    """The service knows nothing of that name (yet)."""


class Exists(Exception):
    """The service has something of that name already."""


def explain(error: Exception, what: str) -> Exception:
    """A botocore error as this module's."""
    answer = getattr(error, "response", None)
    found = answer.get("Error", {}) if isinstance(answer, dict) else {}
    code, message = str(found.get("Code", "")), str(found.get("Message", ""))
    if code == "ModelError":
        original = (answer or {}).get("OriginalStatusCode")
        if original == 503:
            return BusyEndpoint(message)
        return EndpointFailed(f"{what} answers {original}: {(answer or {}).get('OriginalMessage') or message}")
    if _EXISTS.search(message):
        return Exists(what)
    # A CreateModel lacks files or an image, which do not come by waiting.
    may_appear = getattr(error, "operation_name", "") != "CreateModel"
    if may_appear and (_MISSING.search(message) or code in ("ObjectNotFoundException", "ResourceNotFound")):
        return Missing(what)
    if _CHANGING.search(message):
        return BusyEndpoint(f"{what}: {message}")
    translated = translate(error, what)
    match translated:
        case Busy():
            return BusyEndpoint(str(translated))
        case NameTaken():
            return Exists(what)
        case NoSuchJob():
            return Missing(what)
        case JobUnreachable():
            return EndpointUnreachable(str(translated))
        case JobError() | NoCapacity():
            return EndpointRefused(str(translated))
    return translated
