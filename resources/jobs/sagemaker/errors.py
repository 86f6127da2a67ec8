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
# Nothing else says that there is no such job: "does not exist" is also said of a Create's subnets, security groups, keys and buckets.
_NO_SUCH_JOB = re.compile(r"Requested resource not found|Could not find requested job", re.IGNORECASE)
_QUOTA = re.compile(
    r"limit '(?P<name>[^']+)' is (?P<limit>[\d.]+) (?P<unit>[^,]+), with current utilization of (?P<used>[\d.]+) .*"
    r"request delta of (?P<asked>[\d.]+)",
    re.DOTALL,
)
_QUOTA_REMEDY = "ask for a higher quota (Service Quotas, Amazon SageMaker), or choose another INSTANCE_TYPE, INSTANCE_COUNT or VOLUME_GB for the step"
# (what the service says, what to do about it)
_ADVICE = (
    (
        re.compile(
            r"No S3 objects found|bucket.*(region|not exist|NoSuchBucket)|PermanentRedirect|different region",
            re.IGNORECASE,
        ),
        "set DOCML_STORE to a bucket of the region in which jobs run, or AWS_REGION to the bucket's",
    ),
    (
        re.compile(r"assume (the )?role|role .*(does not exist|is invalid|not found)|iam:PassRole", re.IGNORECASE),
        "set DOCML_SAGEMAKER_ROLE_ARN to the job role of deploy/cloudformation.yaml, which sagemaker.amazonaws.com may assume "
        "and the orchestrator may pass (iam:PassRole)",
    ),
    (
        re.compile(
            r"(repository|image).*(not|cannot|unable|invalid|fail)|cannot (find|pull).*(repository|image)",
            re.IGNORECASE,
        ),
        "push the image (docml image push) and set DOCKER_IMAGE in settings.ini, or DOCML_IMAGE, to its URI in the job's region",
    ),
    (re.compile(r"service limit|ResourceLimitExceeded|quota", re.IGNORECASE), _QUOTA_REMEDY),
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
        return _over_quota(message, what)
    if "Capacity" in code or message.startswith("CapacityError"):
        return NoCapacity(message)
    if _BUSY.search(code) or status >= 500:
        return Busy(f"{code}: {message}")
    is_create = str(getattr(error, "operation_name", "")).startswith("Create")
    if not is_create and (_NO_SUCH_JOB.match(message) or code.startswith("ResourceNotFound")):
        return NoSuchJob(what)
    return JobRefused(advice(said))


def _over_quota(message: str, what: str) -> Exception:
    """A quota that is smaller than what is asked for is never met; another may be, when a running job ends."""
    found = _QUOTA.search(message)
    if found is None or float(found["asked"]) <= float(found["limit"]):
        return NoCapacity(advice(f"{what}: ResourceLimitExceeded: {message}"))
    return JobRefused(
        f"{what}: the quota '{found['name']}' is {found['limit']} {found['unit']}, {found['asked']} are asked for: {_QUOTA_REMEDY}"
    )


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
        "AWS_REGION names the region), then run again: a job that is running goes on, and the new run attaches to it"
    )


# How the service's own reasons begin. What follows, and any other reason, may quote the container's words.
_NO_MACHINES = re.compile(
    r"CapacityError|Insufficient (instance )?capacity|Unable to provision requested", re.IGNORECASE
)
_SERVICES_FAULT = re.compile(r"Internal ?(Server|Service)? ?(Error|Exception|Failure)|Host ?Health", re.IGNORECASE)


def cause_of(reason: str) -> Cause:
    """Why a job failed, from the beginning of its FailureReason."""
    if _NO_MACHINES.match(reason):
        return "capacity"
    return "lost" if _SERVICES_FAULT.match(reason) else "work"
