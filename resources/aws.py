"""boto3 sessions and clients from an environment mapping, and values that refer to a secret. boto3 is imported when it is asked for."""

import json
from collections.abc import Mapping
from typing import Any

from docml_contract.names import SECRET_REFERENCE
from resources import aws
from resources.errors import ResourceError, SettingError


def region(environment: Mapping[str, str]) -> str | None:
    """AWS_REGION, else AWS_DEFAULT_REGION, else None."""
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None


# Where the SDKs' variable is not the service's name in capitals.
_VARIABLES = {
    "secretsmanager": "SECRETS_MANAGER",
    "logs": "CLOUDWATCH_LOGS",
    "sagemaker-runtime": "SAGEMAKER_RUNTIME",
    "application-autoscaling": "APPLICATION_AUTO_SCALING",
}


def endpoint(service: str, environment: Mapping[str, str]) -> str | None:
    """AWS_ENDPOINT_URL_<SERVICE>, else AWS_ENDPOINT_URL, else None: the public one. `service` as in boto3."""
    specific = environment.get(f"AWS_ENDPOINT_URL_{_VARIABLES.get(service, service.upper())}")
    url = specific or environment.get("AWS_ENDPOINT_URL") or None
    return url.rstrip("/") if url else None


def session(environment: Mapping[str, str]) -> Any:
    """A boto3 session: the mapping's keys if it holds some, else the standard chain (profile, role, metadata)."""
    try:
        import boto3  # a second to import, and absent from laptop installations
    except ModuleNotFoundError as error:
        raise SettingError("boto3 is not installed, and AWS was asked for: pip install 'docml[aws]'") from error
    return boto3.Session(
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID") or None,
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY") or None,
        aws_session_token=environment.get("AWS_SESSION_TOKEN") or None,
        region_name=region(environment),
        profile_name=environment.get("AWS_PROFILE") or None,
    )


def client(service: str, environment: Mapping[str, str], **options: Any) -> Any:
    """A boto3 client for the endpoint, region and credentials of `environment`."""
    return session(environment).client(service, endpoint_url=endpoint(service, environment), **options)


def is_reference(value: str) -> bool:
    """Whether `value` names a secret instead of being one."""
    return value.startswith(SECRET_REFERENCE)


def resolve(value: str, environment: Mapping[str, str]) -> str:
    """`value` itself, or the secret that it refers to. Errors name the reference, never the secret."""
    if not is_reference(value):
        return value
    name, _, key = value.removeprefix(SECRET_REFERENCE).partition("#")
    if not name:
        raise SettingError(f"{value!r}: expected {SECRET_REFERENCE}NAME#key")
    client = aws.client("secretsmanager", environment)
    try:
        text = client.get_secret_value(SecretId=name)["SecretString"]
    except Exception as error:
        raise ResourceError(
            f"{value}: Secrets Manager did not give it ({type(error).__name__}: {error}); "
            "check the name, the region and the role's secretsmanager:GetSecretValue"
        ) from error
    if not key:
        return str(text)
    try:
        return str(json.loads(text)[key])
    except (ValueError, KeyError, TypeError):
        # from None: the decoder's message may quote the secret
        raise SettingError(f"{value}: the secret is not a JSON object with the key {key!r}") from None
