"""What looks like a secret. settings.ini is copied into the store and shown in the UI, so it must hold none."""

import re

_SECRET_KEY = re.compile(r"passw(or)?d|secret|api[_-]?key|access[_-]?key|auth[_-]?token", re.IGNORECASE)
_SECRET_VALUES = (
    (re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*:[^\s/@]+@"), "a URL that holds a password"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), "what looks like an AWS access key"),
    (re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"), "what looks like a Hugging Face token"),
    (re.compile(r"\bgh[opsu]_[A-Za-z0-9]{36,}\b"), "what looks like a GitHub token"),
    (re.compile(r"\bwandb_v\d_\w{20,}"), "what looks like a wandb key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
)
_REFERENCE = "secretsmanager:"  # names a secret without holding it


def looks_secret(key: str, value: str) -> str | None:
    """Why the value looks like a secret (without repeating it), or None."""
    for pattern, reason in _SECRET_VALUES:
        if pattern.search(value):
            return reason
    if _SECRET_KEY.search(key) and value.strip() and not value.startswith(_REFERENCE):
        return "what its name calls a secret"
    return None
