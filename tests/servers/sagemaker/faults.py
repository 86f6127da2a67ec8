"""Faults that a test can order, each for a number of times."""

import threading
from collections import deque

from tests.servers.sagemaker.errors import LostResponse, ServiceError, throttled

ROLE = (
    "Could not assume role {role}. Please ensure that the role exists and allows principal 'sagemaker.amazonaws.com' "
    "to assume the role."
)
JOB_FAULTS = ("capacity", "spot", "stuck", "ping", "alarm")
OPERATION_FAULTS = {
    "throttle": throttled,
    "server_error": lambda: ServiceError("InternalFailure", "The request processing has failed.", 500),
    "unseen_configuration": lambda: ServiceError("ValidationException", "Could not find endpoint configuration."),
    "limit": lambda: ServiceError(
        "ResourceLimitExceeded",
        "The account-level service limit 'ml.g5.xlarge for training job usage' is 0 Instances, with current "
        "utilization of 0 Instances and a request delta of 1 Instances. Please use AWS Service Quotas to request "
        "an increase for this quota.",
    ),
    "expired": lambda: ServiceError("ExpiredTokenException", "The security token included in the request is expired"),
    "denied": lambda: ServiceError(
        "AccessDeniedException", "User: arn:aws:iam::123456789012:user/x is not authorized to perform this action"
    ),
    "bucket_region": lambda: ServiceError(
        "ValidationException",
        "The S3 bucket 'docml' is in another region than the one in which the job is created. "
        "Please make sure that the bucket is in region eu-west-1.",
    ),
    "model_data": lambda: ServiceError(
        "ValidationException",
        "Could not find model data at s3://bucket/docml/x/. Please ensure that the role exists and that its trust relationship policy "
        "allows the action sts:AssumeRole for the service principal sagemaker.amazonaws.com.",
    ),
    "subnet": lambda: ServiceError("ValidationException", "The subnet ID 'subnet-0a1b2c3d' does not exist"),
    "security_group": lambda: ServiceError("ValidationException", "The security group 'sg-0a1b2c3d' does not exist"),
    "key": lambda: ServiceError(
        "ValidationException", "Invalid KMS key: Key 'arn:aws:kms:eu-west-1:123456789012:key/1' does not exist"
    ),
    "no_inputs": lambda: ServiceError(
        "ValidationException",
        'No S3 objects found under S3 URL "s3://docml/in/" given in input data source. Please ensure that the bucket exists in the '
        "selected region (eu-west-1), that objects exist under that S3 prefix, and that the role has s3:ListBucket permissions on "
        "bucket docml. Error message from S3: The specified bucket does not exist",
    ),
    "resource": lambda: ServiceError("ValidationException", "Requested resource not found."),
    "storage": lambda: ServiceError(
        "ResourceLimitExceeded",
        "The account-level service limit 'Size of EBS volume for a processing job instance' is 1024 Gigabytes, with current "
        "utilization of 0 Gigabytes and a request delta of 2000 Gigabytes. Please use AWS Service Quotas to request an increase.",
    ),
}


class Faults:
    """What goes wrong next. Thread-safe.

    * `order(operation, fault, times)`: a fault of OPERATION_FAULTS before the operation, or `lost_response` after it;
      operation `*` stands for any.
    * `order_job(fault, times)`: `capacity` (no instance to be had) or `spot` (interrupted once while it runs); of the next endpoint that
      is made or updated `stuck`, `ping` or `alarm` (`hosting.py`).
    * `describe_lag`: for that many Describe calls after Create, the job is not yet visible.
    * `log_lag`: log events become visible this many seconds after they were written.
    * `clock_skew`: seconds added to every timestamp in an answer.
    """

    def __init__(self) -> None:
        self.describe_lag = 0
        self.log_lag = 0.0
        self.clock_skew = 0.0
        self._lock = threading.Lock()
        self._operations: deque[list] = deque()
        self._jobs: deque[list] = deque()

    def order(self, operation: str, fault: str, times: int = 1) -> None:
        if fault != "lost_response" and fault not in OPERATION_FAULTS:
            raise ValueError(f"unknown fault {fault!r}: expected lost_response or one of {', '.join(OPERATION_FAULTS)}")
        with self._lock:
            self._operations.append([operation, fault, times])

    def order_job(self, fault: str, times: int = 1) -> None:
        if fault not in JOB_FAULTS:
            raise ValueError(f"unknown job fault {fault!r}: expected one of {', '.join(JOB_FAULTS)}")
        with self._lock:
            self._jobs.append([fault, times])

    def before(self, operation: str) -> None:
        """Raise the ordered error, if any, instead of carrying the operation out."""
        fault = self._take(self._operations, lambda entry: entry[0] in ("*", operation) and entry[1] != "lost_response")
        if fault:
            raise OPERATION_FAULTS[fault[1]]()

    def after(self, operation: str) -> None:
        """Lose the answer of an operation that was carried out, if ordered."""
        if self._take(self._operations, lambda entry: entry[0] in ("*", operation) and entry[1] == "lost_response"):
            raise LostResponse(operation)

    def job(self, fault: str) -> bool:
        """Whether this job meets the fault."""
        return self._take(self._jobs, lambda entry: entry[0] == fault) is not None

    def _take(self, orders: deque[list], fits) -> list | None:  # type: ignore[no-untyped-def]
        with self._lock:
            for entry in orders:
                if fits(entry):
                    entry[-1] -= 1
                    if entry[-1] <= 0:
                        orders.remove(entry)
                    return entry
        return None
