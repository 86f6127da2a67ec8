"""The S3 server itself is killed and comes back while a real command copies, and while its job uploads: both wait, and nothing is lost."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.store import Store
from tests.faults.tiny import EXPERIMENT, Tiny, Warm
from tests.servers.s3 import RestartableS3, restartable_seaweedfs

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

DOWN_SECONDS = 12
MARKS = {
    "copying": "copying 24 files",
    "training": "Training bow on",
    "uploading": "best_torchscript_model: .*Uploading",
}


@pytest.fixture(scope="module")
def server() -> Iterator[RestartableS3]:
    with restartable_seaweedfs() as running:
        yield running


@pytest.mark.parametrize("moment", MARKS)
def test_a_killed_server_is_waited_for(
    moment: str, server: RestartableS3, undisturbed: Tiny, warm: Warm, tmp_path: Path
) -> None:
    url = server.s3.new_url()
    tiny = undisturbed.copy(tmp_path / "tiny", without=[""])
    tiny.environment |= {**server.s3.environment, "DOCML_STORE": url}
    tiny.slow("train", 0.3)
    try:
        command = warm.start(tiny, "run", EXPERIMENT, "-v")
        command.until(MARKS[moment], 300)
        server.kill()
        time.sleep(DOWN_SECONDS)
        assert command.wait(0.01) is None, command.text
        server.start()
        assert command.wait(400) == 0, command.text
    finally:
        with contextlib.suppress(RuntimeError):
            server.start()
        tiny.end_everything()
    store = Store.open(url, environment=server.s3.environment)
    found = {
        stored.key.removeprefix(f"{EXPERIMENT}/").rpartition("/")[0]: json.loads(store.get(stored.key))["data_version"]
        for stored in store.list(f"{EXPERIMENT}/run_1")
        if stored.key.endswith("/MANIFEST.json") and "checkpoints" not in stored.key
    }
    models = ("run_1/training/bow", "run_1/inference", "run_1/labels")
    assert {name: found[name] for name in models} == {name: undisturbed.versions()[name] for name in models}
