"""Encoding processes, asked from one event loop."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from docml_contract.manifests import ModelContext
from docml_contract.names import USER_FUNCTIONS
from docml_trainer.inference.model import DeploymentFolder
from docml_trainer.serving.documents import RequestError, SentDocument
from docml_trainer.serving.encoding import MEMORY, MEMORY_ROOM, Encoders

ROOT = Path(__file__).parents[3]
FUNCTIONS = """
import os, sys

def get_dataset_features(context):
    from datasets import Features, List, Value
    return Features({"input_ids": List(Value("uint16"))})

def encode_data(instance, context):
    text = instance["text.txt"].read_text()
    if text == "die":
        os._exit(3)
    if text == "torch?":
        return {"input_ids": [int("torch" in sys.modules)]}
    return {"input_ids": [len(word) for word in text.split()] + [len(os.listdir(instance["text.txt"].parents[1]))]}
"""


def document(text: str) -> SentDocument:
    return SentDocument("a-document", {"text.txt": text.encode()})


def deployment(folder: Path) -> DeploymentFolder:
    """Without a model, which no encoder needs."""
    (folder / USER_FUNCTIONS).write_text(FUNCTIONS)
    context = ModelContext(
        experiment="EXP-1",
        run=1,
        model_name="toy",
        model_names=("toy",),
        labels=("a", "b"),
        own_hyperparameters={},
        production_files=("text.txt",),
        model_input_files=("text.txt",),
        has_process_func=False,
    )
    return DeploymentFolder(folder, context, None, None)  # type: ignore[arg-type]


def test_a_document_goes_through_a_process_and_leaves_nothing_behind(tmp_path: Path) -> None:
    encoders = Encoders(deployment(tmp_path), 1, 60.0)
    scratch = encoders._scratch
    in_memory = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_ROOM
    assert (scratch.parent == MEMORY) == in_memory
    assert encoders.start().keys() == {"input_ids"}

    async def ask() -> None:
        for _ in range(3):
            row = await encoders.encode(document("three short words"))
            assert row["artifact_guid"] == "a-document"
            assert row["input_ids"].tolist() == [5, 5, 5, 1]  # the last document's folder has gone
        found = await asyncio.gather(*(encoders.encode(document("x " * count)) for count in range(20)))
        assert [len(row["input_ids"]) for row in found] == [count + 1 for count in range(20)]
        assert (await encoders.encode(document("torch?")))["input_ids"].tolist() == [0]
        with pytest.raises(RequestError, match=r"ended its process \(exit code 3\)"):
            await encoders.encode(document("die"))
        assert len((await encoders.encode(document("again")))["input_ids"]) == 2
        await encoders.close()

    asyncio.run(ask())
    assert not scratch.exists()


def killed_server(folder: Path, *, encoders: bool) -> Path:
    """The scratch folder of a server that was killed, with or without encoding processes that see it."""
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from docml_trainer.serving.encoding import Encoders\n"
        "from tests.docml_trainer.serving.test_encoding import deployment\n"
        "if __name__ == '__main__':\n"
        "    encoders = Encoders(deployment(Path(sys.argv[1])), 1, 60.0)\n"
        f"    encoders.start() if {encoders} else None\n"
        "    print(encoders._scratch, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (folder / "server.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trainer_image")])}
    done = subprocess.run(
        [sys.executable, str(folder / "server.py"), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    scratch = Path(done.stdout.strip())
    assert scratch.name.startswith("docml-serve-")
    return scratch


def test_a_killed_server_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = killed_server(tmp_path, encoders=True)
    deadline = time.monotonic() + 60
    while scratch.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_server_left_that_was_killed_with_all_its_processes_goes_with_the_next_one(tmp_path: Path) -> None:
    left = killed_server(tmp_path, encoders=False)
    assert left.exists()
    first, second = (Encoders(deployment(tmp_path), 1, 60.0) for _ in range(2))
    assert not left.exists()
    assert first._scratch.exists(), "its server lives"
    for encoders in (first, second):
        asyncio.run(encoders.close())
        assert not encoders._scratch.exists()
