"""Which lines of a job's log are events."""

import os
import subprocess
import sys

import pytest

from docml_contract.log_lines import EPOCH, PROGRESS, TRACKING, format_event, parse_event

NONCE = "5f1c"


def line(text: str) -> str:
    return f"DOCML {NONCE} {text}"


def test_a_processs_events_carry_the_nonce_that_its_environment_had() -> None:
    script = (
        "import os; from docml_contract import log_lines; log_lines.take_nonce(os.environ)\n"
        "print(log_lines.format_event('epoch', epoch=1)); print(os.environ.get('DOCML_EVENTS'), log_lines.nonce_for_children())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DOCML_EVENTS": NONCE}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    event, rest = done.stdout.splitlines()
    assert parse_event(event, NONCE) == {"event": "epoch", "epoch": 1}
    assert rest == f"None {{'DOCML_EVENTS': '{NONCE}'}}"


@pytest.mark.parametrize(
    "printed",
    [
        'DOCML {"event": "tracking", "url": "https://elsewhere"}',
        'DOCML 0000 {"event": "epoch"}',
        line('["event"]'),
        line('{"event": 1}'),
        line("[" * 10_000),
        line('{"event": ' + "9" * 10_000 + "}"),
        line('{"event": "epoch", "x": "' + "y" * 20_000 + '"}'),
        line('{"event": "progress", "done": "many"}'),
        line('{"event": "progress", "done": -1}'),
        line('{"event": "progress", "done": 1, "total": "x"}'),
        *(
            line(f'{{"event": "progress", "done": 1, "total": {total}}}')
            for total in ("[]", "{}", '""', "false", "0.0")
        ),
        f" {line('{}')}",
    ],
)
def test_what_user_code_or_a_document_prints_is_text(printed: str) -> None:
    assert parse_event(printed, NONCE) is None


def test_what_an_event_says_is_bounded() -> None:
    event = parse_event(
        line(
            '{"event": "epoch", "a": 1e999, "b": NaN, "c": ' + "9" * 400 + ', "d": "\\u001b[2J' + "x" * 999 + '", '
            '"e": {"\\u001b": [["\\u001b"], true, 1.5]}}'
        ),
        NONCE,
    )
    assert event is not None
    assert event["a"] is event["b"] is event["c"] is None
    assert event["d"].startswith("\\x1b[2J")
    assert event["e"] == {"\\x1b": [["\\x1b"], True, 1.5]}
    assert len(event["d"]) < 600


def test_jobs_of_before_there_were_nonces_are_understood() -> None:
    for kind, fields in (
        (EPOCH, {"epoch": 1}),
        (PROGRESS, {"done": 1, "total": None}),
        (TRACKING, {"url": "https://x"}),
    ):
        assert parse_event(format_event(kind, **fields)) == {"event": kind, **fields}
