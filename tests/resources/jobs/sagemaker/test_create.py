"""The names of the SDK's typed layer that docml touches beside its documented ones; whoever updates the SDK reads here what broke."""

from typing import Any

import boto3
import pytest
from botocore.session import get_session
from sagemaker.core import resources
from sagemaker.core.utils.utils import pascal_to_snake

from resources.jobs.sagemaker.describe import NOUNS


@pytest.mark.parametrize("noun", NOUNS.values())
def test_members_of_create_have_the_spelling_that_the_typed_layer_takes(noun: str) -> None:
    annotations: dict[str, Any] = getattr(resources, noun).create.__wrapped__.__annotations__
    members = get_session().get_service_model("sagemaker").operation_model(f"Create{noun}").input_shape.members
    known = [pascal_to_snake(member) for member in members]
    missing = sorted(set(known) - set(annotations))
    assert not missing, (
        f"{noun}.create takes no {missing}: sagemaker.core.utils.utils.pascal_to_snake spells otherwise now"
    )


def test_a_boto3_session_holds_its_botocore_session() -> None:
    assert isinstance(boto3.Session()._session, type(get_session())), "boto3.Session._session: TypedLayer reads it"
