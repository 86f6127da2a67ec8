"""Values that are references: `secretsmanager:NAME#key` stands for one key of a JSON secret, without `#key` for all of it."""

import json
from collections.abc import Mapping

from docml_contract.names import SECRET_REFERENCE
from resources import aws
from resources.errors import ResourceError, SettingError


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
        raise SettingError(f"{value}: the secret is no JSON object with the key {key!r}") from None
