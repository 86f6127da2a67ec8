"""Create through `sagemaker.core.resources`, with our client under it. Importing this module takes seconds.

The typed layer makes two calls: Create, and Describe of what it created.
"""

from typing import Any

import boto3
from botocore.session import get_session
from sagemaker.core.resources import HyperParameterTuningJob, ProcessingJob, TrainingJob
from sagemaker.core.utils.utils import pascal_to_snake

RESOURCES = {
    "ProcessingJob": ProcessingJob,
    "TrainingJob": TrainingJob,
    "HyperParameterTuningJob": HyperParameterTuningJob,
}


class _Session(boto3.Session):
    """Gives the typed layer our SageMaker client (its endpoint, its time-outs, no retries); it asks for three others and uses none."""

    def __init__(self, session: Any, sagemaker: Any) -> None:
        super().__init__(botocore_session=session._session, region_name=sagemaker.meta.region_name)
        self._sagemaker = sagemaker

    def client(self, service_name: str, *args: Any, **options: Any) -> Any:
        return self._sagemaker if service_name == "sagemaker" else None


class TypedLayer:
    """Creates jobs through the typed layer, by `client`, which `session` made."""

    def __init__(self, session: Any, client: Any) -> None:
        self._session = _Session(session, client)
        self._region = client.meta.region_name
        self._model = get_session().get_service_model("sagemaker")

    def create(self, noun: str, request: dict[str, Any]) -> None:
        """Create<noun> with `request` (as in the API reference). Raises what botocore raises."""
        shape = self._model.operation_model(f"Create{noun}").input_shape
        RESOURCES[noun].create(**_snake(shape, request), session=self._session, region=self._region)


def _snake(shape: Any, value: Any) -> Any:
    """Members' names in the typed layer's spelling; the keys of maps are data and stay."""
    if shape.type_name == "structure":
        return {pascal_to_snake(name): _snake(shape.members[name], member) for name, member in value.items()}
    if shape.type_name == "list":
        return [_snake(shape.member, item) for item in value]
    return value
