import json

import pytest

from resources.aws import resolve
from resources.errors import ResourceError, SettingError
from tests.servers.faults import Answer, Request, scripted_s3

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1"}
SECRETS = {"labels": json.dumps({"url": "postgresql://u:p@h/d", "n": 5}), "plain": "just text"}


def answer(request: Request) -> Answer:
    name = json.loads(request.body)["SecretId"]
    if name not in SECRETS:
        return Answer(400, json.dumps({"__type": "ResourceNotFoundException", "Message": "no such secret"}).encode())
    return Answer(200, json.dumps({"Name": name, "SecretString": SECRETS[name]}).encode())


def test_values_that_are_no_references_are_themselves() -> None:
    assert resolve("sqlite:///x#y", {}) == "sqlite:///x#y"


def test_references() -> None:
    with scripted_s3(answer) as server:
        environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL_SECRETS_MANAGER": server.endpoint}
        assert resolve("secretsmanager:labels#url", environment) == "postgresql://u:p@h/d"
        assert resolve("secretsmanager:labels#n", environment) == "5"
        assert resolve("secretsmanager:plain", environment) == "just text"
        assert "/eu-west-1/secretsmanager/" in server.requests[0].headers["authorization"]


def test_errors_name_the_reference_and_never_the_secret() -> None:
    with scripted_s3(answer) as server:
        environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.endpoint}
        for reference, kind in {
            "secretsmanager:labels#nokey": SettingError,
            "secretsmanager:plain#key": SettingError,
            "secretsmanager:gone#key": ResourceError,
        }.items():
            with pytest.raises(kind, match=reference) as caught:
                resolve(reference, environment)
            assert "u:p@h" not in str(caught.value)
            assert "just text" not in str(caught.value)
    with pytest.raises(SettingError, match="NAME#key"):
        resolve("secretsmanager:#key", ENVIRONMENT)
