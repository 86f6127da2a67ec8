"""What AWS says when it refuses -> what the engine does about it, and which setting people have to change."""

import re

from resources.jobs.backend import Busy, Cause, NameTaken, NoCapacity
from resources.jobs.interface import JobRefused, JobUnreachable


class NoSuchJob(Exception):
    """The service knows no job of this name (yet)."""


_BUSY = re.compile(
    r"Throttl|RequestLimitExceeded|TooManyRequests|ServiceUnavailable|InternalFailure|InternalServer|InternalError|"
    r"RequestTimeout|LimitExceededException"
)
_CREDENTIALS = re.compile(
    r"ExpiredToken|InvalidClientTokenId|UnrecognizedClient|InvalidSignature|SignatureDoesNotMatch|AuthFailure|"
    r"MissingAuthenticationToken|InvalidAccessKeyId|RequestExpired"
)
_NO_CREDENTIALS = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),
        *("UnauthorizedSSOTokenError", "SSOTokenLoadError", "NoRegionError", "ProfileNotFound"),
    }
)
_GONE = re.compile(
    r"Requested resource not found|ResourceNotFound|does not exist|Could not find requested job", re.IGNORECASE
)
# (what the service says, what to do about it)
_ADVICE = (
    (
        re.compile(r"assume (the )?role|role .*(does not exist|is invalid|not found)|iam:PassRole", re.IGNORECASE),
        "set DOCML_SAGEMAKER_ROLE_ARN to the job role of deploy/cloudformation.yaml, which sagemaker.amazonaws.com may assume "
        "and the orchestrator may pass (iam:PassRole)",
    ),
    (
        re.compile(r"(repository|image).*(not|cannot|unable|invalid|fail)|cannot (find|pull).*image", re.IGNORECASE),
        "push the image (docml image push) and set DOCKER_IMAGE in settings.ini, or DOCML_IMAGE, to its URI in the job's region",
    ),
    (
        re.compile(r"bucket.*(region|not exist|NoSuchBucket)|PermanentRedirect|different region", re.IGNORECASE),
        "set DOCML_STORE to a bucket of the region in which jobs run, or AWS_REGION to the bucket's",
    ),
    (
        re.compile(r"service limit|ResourceLimitExceeded|quota", re.IGNORECASE),
        "ask for a higher quota (Service Quotas, Amazon SageMaker), or choose another INSTANCE_TYPE or INSTANCE_COUNT for the step",
    ),
    (
        re.compile(r"kms|key.*(disabled|not exist|access)", re.IGNORECASE),
        "check DOCML_KMS_KEY, and that the job role may use the key",
    ),
    (re.compile(r"subnet|security group|vpc", re.IGNORECASE), "check DOCML_SUBNETS and DOCML_SECURITY_GROUPS"),
    (
        re.compile(r"AccessDenied|not authorized|Access Denied", re.IGNORECASE),
        "the role in DOCML_SAGEMAKER_ROLE_ARN (jobs) or the orchestrator's own role lacks a permission: compare with "
        "deploy/cloudformation.yaml",
    ),
)


def advice(text: str) -> str:
    """The text with what to change, where that is known."""
    for pattern, remedy in _ADVICE:
        if pattern.search(text):
            return f"{text.rstrip('. ')}: {remedy}"
    return text


def translate(error: Exception, what: str) -> Exception:
    """A botocore error as the engine's: Busy, NameTaken, NoCapacity, NoSuchJob, JobRefused or JobUnreachable."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return _translate_local(error, what)
    code = str(answer.get("Error", {}).get("Code", ""))
    message = str(answer.get("Error", {}).get("Message", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    said = f"{what}: {code}: {message}"
    if code == "ResourceInUse":
        return NameTaken(what)
    if _CREDENTIALS.search(code):
        return _credentials(said)
    if code == "ResourceLimitExceeded":
        # A quota of 0 never frees up; another may, when a running job ends.
        return JobRefused(advice(said)) if re.search(r"\bis 0 Instances", message) else NoCapacity(advice(said))
    if "Capacity" in code or "CapacityError" in message:
        return NoCapacity(message)
    if _BUSY.search(code) or status >= 500:
        return Busy(f"{code}: {message}")
    if _GONE.search(message) or code.startswith("ResourceNotFound"):
        return NoSuchJob(what)
    return JobRefused(advice(said))


def _translate_local(error: Exception, what: str) -> Exception:
    """An error that arose on this side: no credentials, no connection."""
    name = type(error).__name__
    if name in _NO_CREDENTIALS:
        return _credentials(f"{what}: {name}: {error}")
    from botocore.exceptions import BotoCoreError, HTTPClientError

    if isinstance(error, HTTPClientError):
        return Busy(f"{name}: {error}")
    if isinstance(error, BotoCoreError):
        return JobRefused(f"{what}: {name}: {error}")
    return error


def _credentials(said: str) -> JobUnreachable:
    return JobUnreachable(
        f"{said}: renew the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; "
        "AWS_REGION names the region), then run again: a job that runs goes on and is attached to"
    )


def cause_of(reason: str) -> Cause:
    """Why a job failed, from its FailureReason."""
    if re.search(r"CapacityError|Insufficient.*capacity|Unable to provision", reason, re.IGNORECASE):
        return "capacity"
    if re.search(r"InternalServerError|InternalServerException|Internal Error|HostHealth|instance .*unhealthy", reason):
        return "lost"
    return "work"
