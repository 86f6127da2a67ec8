"""Errors as the service words them, and the one that stands for a lost answer."""


class ServiceError(Exception):
    """An error answer: `code` as in the API reference, `status` the HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


class LostResponse(Exception):
    """The operation was carried out; the connection breaks before its answer arrives."""


def not_found() -> ServiceError:
    """What SageMaker says of a job that does not exist (not a ResourceNotFound)."""
    return ServiceError("ValidationException", "Requested resource not found.")


def throttled() -> ServiceError:
    """Too many calls a second."""
    return ServiceError("ThrottlingException", "Rate exceeded")
