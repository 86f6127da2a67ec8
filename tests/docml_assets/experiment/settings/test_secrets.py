import pytest

from docml_assets.experiment.settings.secrets import looks_secret


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "postgresql://me:word@host/db"),
        ("x", "before AKIA" + "A" * 16),
        ("x", "hf_" + "a" * 34),
        ("x", "-----BEGIN RSA PRIVATE KEY-----"),
        ("WANDB_API_KEY", "something"),
        ("db_password", "something"),
    ],
)
def test_secrets(key: str, value: str) -> None:
    assert looks_secret(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "s3://bucket/prefix"),
        ("url", "https://host:8080/path@2"),
        ("max_tokens", "512"),
        ("pad_token", "<pad>"),
        ("revision", "0123456789abcdef0123456789abcdef01234567"),
        ("api_key", "secretsmanager:name#key"),
    ],
)
def test_no_secrets(key: str, value: str) -> None:
    assert looks_secret(key, value) is None
