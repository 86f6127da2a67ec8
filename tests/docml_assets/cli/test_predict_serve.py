"""docml serve, and the examples of docs/using-a-model.md, against a server that was started as a person starts it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from docml_assets.deployment import SAMPLE
from tests.docml_assets.cli.here import DOCML, REPOSITORY, Here
from tests.docml_assets.cli.test_predict import EXPERIMENT, decided, reported

pytestmark = pytest.mark.timeout(900)  # whoever comes first waits for a whole run


@pytest.fixture(scope="module")
def url(used: Here) -> Iterator[str]:
    """Of a server with the model `fixed`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [*DOCML, "serve", EXPERIMENT, "1", "--model", "fixed", "--port", str(port)]
    with (used.root / "serve.log").open("w") as log:
        process = subprocess.Popen(command, cwd=used.root, env=used.environment, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 200
        while not _answers(f"{base}/ping"):
            assert process.poll() is None, (used.root / "serve.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield base
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url) as response:
            return bool(response.status == 200)
    except URLError:
        return False


def test_it_answers_as_the_report_did(used: Here, url: str) -> None:
    expected = reported(used, "fixed")
    guids = sorted(expected)
    documents = [
        {"artifact_guid": guid, "files": {"raw_text.json": (SAMPLE / "artifacts" / guid / "raw_text.json").read_text()}}
        for guid in guids
    ]
    request = Request(f"{url}/invocations", json.dumps(documents).encode(), {"content-type": "application/json"})
    with urlopen(request) as response:
        answers = json.load(response)
    for guid, answer in zip(guids, answers, strict=True):
        label, probabilities = expected[guid]
        assert answer["label"] == label
        assert answer["accepted"] is bool(decided(used, "fixed").accepts(np.array(probabilities)))
        assert np.abs(np.array(list(answer["probabilities"].values())) - probabilities).max() < 1e-4


def test_the_examples_of_the_documentation(url: str, tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/using-a-model.md").read_text(encoding="utf-8").replace("http://127.0.0.1:8080", url)
    (curl,) = re.findall(r"```sh\n(curl .*?)```", text, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "raw_text.json").write_text(json.dumps({"text": "a letter about nothing"}))
    said = subprocess.run(["sh", "-c", curl], cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(said.stdout).keys() >= {"label", "probability", "run", "model"}
    done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True, check=True)
    label, probability = done.stdout.split()
    assert label
    assert 0 < float(probability) <= 1
