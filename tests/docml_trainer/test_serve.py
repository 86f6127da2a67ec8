"""The server over a deployment folder: real processes, real HTTP. Whatever is sent, it answers with a status and a sentence, and goes on."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench._deployments import seal
from docml_contract import names
from docml_contract.manifests import ModelContext, sha256_file
from docml_trainer.serving.documents import MAX_BYTES, References, RequestError, may_name_references, read_documents
from tests.docml_trainer.inferences import Positional, bert, write_model
from tests.docml_trainer.jobfolder import KEPT, TRAINER_IMAGE
from tests.docml_trainer.trainings import LABELS
from tests.servers.s3 import S3Server

FUNCTIONS = """
import json, os, sys, time

def process_func(artifact, directory):
    text = json.loads((directory / "raw_text.json").read_text())["text"]
    if "processfails" in text:
        raise ValueError("no words today")
    if "processhangs" in text:
        time.sleep(3600)
    if "processexits" in text:
        sys.exit("enough")
    if "processdies" in text:
        os._exit(4)
    if "processleaves" in text:
        (directory / "folder").mkdir()
    if "processchanges" in text:
        (directory / "raw_text.json").write_text("other")
    (directory / "words.json").write_text(json.dumps(text.split()))

def get_dataset_features(context):
    from datasets import Features, List, Value
    return Features({"input_ids": List(Value("int64"))})

def encode_data(instance, context):
    words = json.loads(instance["words.json"].read_text())
    if "encodefails" in words:
        raise ValueError("a riddle")
    if "encodehangs" in words:
        time.sleep(3600)
    if "encodedies" in words:
        os._exit(3)
    if "encodeexits" in words:
        sys.exit("enough")
    if "encodewrong" in words:
        return {"letters": [1]}
    if "slow" in words:
        time.sleep(1)
    if "gate" in words:
        while not os.path.exists(words[-1]):
            time.sleep(0.01)
    print("somebody printed", *words)
    return {"input_ids": [1 + len(word) for word in words]} if words else None
"""


def deployment_folder(folder: Path, module: torch.nn.Module) -> Path:
    """A deployment folder as the orchestrator makes it."""
    write_model(folder, module)
    files = ("raw_text.json", "page_*.txt")
    context = toy_context(production_files=files, model_input_files=("words.json",), has_process_func=True)
    return seal(folder, context, FUNCTIONS, "torch\n")


def toy_context(**files: Any) -> ModelContext:
    """What a deployment folder says of a model that takes optional pages. files: which files it takes, and whether process_func makes them."""
    return ModelContext(
        experiment="EXP-1",
        run=3,
        model_name="toy",
        model_names=("toy",),
        labels=tuple(LABELS),
        own_hyperparameters={},
        optional_files=("page_*.txt",),
        **files,
    )


@dataclass
class Served:
    """A running server."""

    process: "subprocess.Popen[str]"
    port: int
    log: Path

    def ask(
        self, body: Any, *, kind: str = "application/json", method: str = "POST", path: str = "/invocations"
    ) -> tuple[int, Any]:
        """Status and content of an answer; `body`: bytes as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"content-type": kind})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        return response.status, json.loads(content) if response.getheader(
            "content-type"
        ) == "application/json" else content

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextmanager
def serving(folder: Path, base: Path, **environment: str) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    kept = {key: value for key, value in os.environ.items() if key in KEPT}
    log = base / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "docml_trainer", "serve"],
            env={
                **kept,
                "PYTHONPATH": str(TRAINER_IMAGE),
                "SAGEMAKER_BASE_DIR": str(base),
                "DOCML_MODEL_FOLDER": str(folder),
                "DOCML_SERVE_HOST": "127.0.0.1",
                "SAGEMAKER_BIND_TO_PORT": str(port),
                "DOCML_ENCODE_TIMEOUT_SECONDS": "8",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    served = Served(process, port, log)
    try:
        yield served
    finally:
        process.kill()
        process.wait()


def await_ready(served: Served) -> None:
    deadline = time.monotonic() + 200
    while True:
        assert served.process.poll() is None, served.log.read_text()
        assert time.monotonic() < deadline, served.log.read_text()
        try:
            status, _ = served.ask(b"", method="GET", path="/ping")
        except OSError:
            status = 0
        if status == 200:
            return
        time.sleep(0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployment_folder(tmp_path_factory.mktemp("deployed") / "toy", Positional(bert()))


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Served]:
    sha256 = sha256_file(folder / names.MANIFEST)
    base = tmp_path_factory.mktemp("base")
    s3_server.bucket("mine")
    objects = {"good": json.dumps({"text": TEXT}).encode(), "large": b" " * 7_000_000, "wrong": b"no"}
    for name, content in objects.items():
        s3_server.client().put_object(Bucket="mine", Key=f"docs/{name}/raw_text.json", Body=content)
    with serving(
        folder, base, DOCML_MANIFEST_SHA256=sha256, DOCML_STORE="s3://mine/docs", **s3_server.environment
    ) as server:
        await_ready(server)
        yield server


def document(text: str) -> dict[str, Any]:
    return {"files": {"raw_text.json": json.dumps({"text": text})}}


def expected(text: str) -> list[float]:
    """What the bare model says about it."""
    ids = torch.tensor([[1 + len(word) for word in text.split()]])
    with torch.no_grad():
        logits = bert()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
    return [float(value) for value in torch.softmax(logits, 0)]


def by_reference(url: str) -> dict[str, Any]:
    return {"files": {"raw_text.json": {"s3": url}}}


TEXT = "the words of a document that somebody sent"
GOOD = document(TEXT)
TOO_MUCH = {"files": {"raw_text.json": "x" * 10_000_000}}
BAD: list[tuple[str, Any, int, str]] = [
    ("not JSON", b"{", 400, "the body is not JSON"),
    ("nothing", b"", 400, "the body is not JSON"),
    ("numbers too long to read", b'{"files": 1' + b"1" * 5000 + b"}", 400, "the body is not JSON"),
    ("text behind it", b'{"files": {}} {}', 400, "the body is not JSON (Extra data)"),
    ("not UTF-8", b"\xff\xfe{}", 400, "the body is not JSON"),
    ("NaN", b'{"files": NaN}', 400, "NaN is not a JSON value"),
    ("deep", b"[" * 200_000, 400, "the body is not JSON"),
    ("a number", 5, 400, "found a number; expected an object with files"),
    ("true", True, 400, "found true or false; expected an object with files"),
    ("null", None, 400, "found nothing; expected an object"),
    ("text", "hello", 400, "found text; expected an object"),
    ("an empty list", [], 400, "the list is empty"),
    ("a list in a list", [[GOOD]], 400, "document 1: found a list"),
    ("one of several", [GOOD, {"files": {}}], 400, "document 2: lacks the file raw_text.json"),
    ("no files", {"artifact_guid": "a"}, 400, "files is nothing"),
    ("files as a list", {"files": ["raw_text.json"]}, 400, "files is a list"),
    ("an unknown key", {**GOOD, "label": "x"}, 400, "unknown key 'label'; expected artifact_guid and files"),
    ("a missing file", {"files": {}}, 400, "lacks the file raw_text.json"),
    (
        "an unknown file",
        {"files": {**GOOD["files"], "other.txt": "x"}},
        400,
        "unknown file 'other.txt'; expected raw_text.json",
    ),
    (
        "a file that process_func makes",
        {"files": {**GOOD["files"], "words.json": "[]"}},
        400,
        "unknown file 'words.json'",
    ),
    ("a path as a name", {"files": {"../raw_text.json": "x"}}, 400, "a path separator"),
    ("an absolute path", {"files": {"/etc/passwd": "x"}}, 400, "a path separator"),
    ("dots", {"files": {"..": "x"}}, 400, "dots only"),
    (
        "a control character",
        {"files": {"page_\x00.txt": "x", **GOOD["files"]}},
        400,
        "a control or invisible character",
    ),
    ("an encoded path", {"files": {"page_%2e%2e%2f.txt": "x", **GOOD["files"]}}, 400, "percent-encoded"),
    ("a long name", {"files": {f"page_{'1' * 300}.txt": "x"}}, 400, "bytes long"),
    ("an empty GUID", {**GOOD, "artifact_guid": ""}, 400, "artifact_guid cannot be used: an empty name"),
    ("a number as GUID", {**GOOD, "artifact_guid": 7}, 400, "artifact_guid cannot be used: not text"),
    ("a path as GUID", {**GOOD, "artifact_guid": "../../x"}, 400, "a path separator"),
    ("half a surrogate pair", b'{"files": {"raw_text.json": "\\ud800"}}', 400, "half of a surrogate pair"),
    ("a surrogate in a name", b'{"files": {"\\ud800": "x"}}', 400, "not valid UTF-8"),
    ("wrong base64", {"files": {"raw_text.json": {"base64": "%%%"}}}, 400, "not valid base64"),
    ("base64 cut off", {"files": {"raw_text.json": {"base64": "eyJ"}}}, 400, "not valid base64"),
    ("base64 of other letters", {"files": {"raw_text.json": {"base64": "ä==="}}}, 400, "not valid base64"),
    ("a content as a list", {"files": {"raw_text.json": ["x"]}}, 400, "raw_text.json: found a list"),
    ("a reference as a number", {"files": {"raw_text.json": {"s3": 5}}}, 400, "expected text"),
    ("base64 as a number", {"files": {"raw_text.json": {"base64": 5}}}, 400, "expected text"),
    ("two ways at once", {"files": {"raw_text.json": {"base64": "", "s3": ""}}}, 400, "expected text"),
    ("a content as null", {"files": {"raw_text.json": None}}, 400, "raw_text.json: found nothing"),
    (
        "a reference elsewhere",
        {"files": {"raw_text.json": {"s3": "s3://others/secret"}}},
        400,
        "expected a reference below s3://mine/docs/",
    ),
    ("a reference beside", {"files": {"raw_text.json": {"s3": "s3://mine/docs2/a"}}}, 400, "is not followed"),
    (
        "a reference that climbs",
        {"files": {"raw_text.json": {"s3": "s3://mine/docs/../other"}}},
        400,
        "is not followed",
    ),
    ("a reference to nothing", by_reference("s3://mine/docs/none/raw_text.json"), 400, "there is no such object"),
    ("a reference to a folder", by_reference("s3://mine/docs/good/"), 400, "is not followed"),
    ("a reference with a surrogate", by_reference("s3://mine/docs/\ud800"), 400, "is not followed"),
    ("a long reference", by_reference("s3://mine/docs/" + "x" * 1_100), 400, "is not followed"),
    ("a large object", by_reference("s3://mine/docs/large/raw_text.json"), 413, "docml predict"),
    ("an object that is wrong", by_reference("s3://mine/docs/wrong/raw_text.json"), 422, "JSONDecodeError"),
    ("a file as a reference", {"files": {"raw_text.json": {"s3": "file:///etc/passwd"}}}, 400, "is not followed"),
    ("10 MB", TOO_MUCH, 413, "docml predict"),
    ("100 documents", [GOOD] * 100, 413, "at most 64"),
    (
        "not JSON for process_func",
        {"files": {"raw_text.json": "no"}},
        422,
        "process_func does not take this document: JSONDecodeError",
    ),
    ("process_func raises", document("processfails"), 422, "ValueError: no words today"),
    ("process_func hangs", document("processhangs"), 422, "did not end within 8 seconds"),
    ("process_func exits", document("processexits"), 422, "SystemExit: enough"),
    ("process_func ends its process", document("processdies"), 422, "the worker process died (exit code 4)"),
    ("process_func leaves a folder", document("processleaves"), 422, "left 'folder', which is not a plain file"),
    ("process_func changes a file", document("processchanges"), 422, "changed or removed 'raw_text.json'"),
    (
        "encode_data raises",
        document("encodefails"),
        422,
        "words.json: ValueError: a riddle (user_defined_funcs.py, line",
    ),
    ("encode_data returns None", document(""), 422, "encode_data returned None"),
    ("encode_data hangs", document("encodehangs"), 422, "has not returned within 8 s"),
    ("encode_data ends its process", document("encodedies"), 422, "ended its process (exit code 3)"),
    ("encode_data exits", document("encodeexits"), 422, "SystemExit: enough"),
    ("too long for the model", document("word " * 500), 500, "the model failed on this document"),
    ("encode_data is wrong", document("encodewrong"), 500, "encode_data returned a wrong encoding"),
]


@pytest.mark.parametrize(("body", "status", "sentence"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_request_gets_a_status_and_a_sentence_and_the_server_goes_on(
    served: Served, body: Any, status: int, sentence: str
) -> None:
    found, content = served.ask(body)
    assert found == status, content
    assert content.keys() == {"error"}
    assert sentence in content["error"]
    assert "Traceback" not in content["error"]
    assert served.ask(GOOD)[0] == 200


def test_other_types_other_paths_and_half_a_request(served: Served) -> None:
    assert served.ask(b"a,b", kind="text/csv")[0] == 415
    assert served.ask(b"", kind="")[0] == 415
    assert served.ask(GOOD, method="GET", path="/invocations")[0] == 405
    assert served.ask(GOOD, path="/predict")[0] == 404
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        head = (
            b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"
        )
        client.sendall(head)
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(b"no HTTP\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert served.ask(GOOD)[0] == 200


def test_a_reference_is_followed(served: Served) -> None:
    status, answer = served.ask(by_reference("s3://mine/docs/good/raw_text.json"))
    assert status == 200
    assert list(answer["probabilities"].values()) == pytest.approx(expected(TEXT), abs=1e-4)


def test_a_reference_in_escapes_is_not_read_where_everybody_waits() -> None:
    body = json.dumps(by_reference("s3://mine/docs/good")).encode()
    escaped = body.replace(b"s3", rb"\u0073\u0033")
    assert json.loads(escaped) == json.loads(body)
    assert may_name_references(body)
    assert may_name_references(escaped)
    assert not may_name_references(json.dumps(document("a plain text")).encode())


@pytest.mark.parametrize(
    ("pages", "size", "reason"),
    [(1_001, 1, "more than 1,000 references"), (20, MAX_BYTES, "lead to more than 100,663,296 bytes")],
    ids=["many", "large"],
)
def test_what_a_small_request_refers_to_is_bounded(pages: int, size: int, reason: str) -> None:
    read = []

    class Objects(References):
        def read(self, url: str) -> bytes:
            read.append(url)
            return b"x" * size

    context = ModelContext.model_construct(production_files=("page_*.png",), optional_files=())
    files = {f"page_{number}.png": {"s3": f"s3://mine/{number}"} for number in range(pages)}
    with pytest.raises(RequestError, match=reason) as caught:
        read_documents(json.dumps({"files": files}).encode(), context, Objects({}))
    assert caught.value.status == 413
    assert len(read) <= 1_000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "EndpointConnectionError"),
        ({"AWS_SECRET_ACCESS_KEY": "other"}, "SignatureDoesNotMatch"),
    ],
    ids=["unreachable", "forbidden"],
)
def test_an_s3_that_does_not_answer_is_overload(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], reason: str
) -> None:
    environment = {**s3_server.environment, **changes, "DOCML_STORE": s3_server.bucket("mine")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it remembers credentials
    with pytest.raises(RequestError, match=f"cannot be read now .{reason}") as caught:
        References(environment).read("s3://mine/docs/good/raw_text.json")
    assert caught.value.status == 503


def test_too_many_documents_are_turned_away(served: Served, tmp_path: Path) -> None:
    gate = tmp_path / "open"
    held = [document(f"gate {gate}"), *[GOOD] * 63]
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(served.ask(held))) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while b"docml_waiting_documents 256.0" not in served.ask(b"", method="GET", path="/metrics")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    status, content = served.ask(GOOD)
    gate.touch()
    for thread in threads:
        thread.join()
    assert (status, content) == (503, {"error": "256 documents are waiting already; try again later"})
    assert [status for status, _ in answers] == [200] * 4
    assert served.ask(GOOD)[0] == 200


def test_answers_are_the_models_alone_in_lists_and_under_load(served: Served) -> None:
    texts = [f"{TEXT} number {'x' * index}" for index in range(12)]
    status, alone = served.ask({**document(texts[0]), "artifact_guid": "doc-1"})
    assert status == 200
    assert alone.keys() == {
        *("label", "probability", "probabilities", "accepted", "experiment", "run", "model", "torchscript_sha256")
    }
    assert (alone["experiment"], alone["run"], alone["model"], alone["accepted"]) == ("EXP-1", 3, "toy", None)
    assert list(alone["probabilities"].values()) == pytest.approx(expected(texts[0]), abs=1e-4)
    assert alone["probability"] == max(alone["probabilities"].values())
    encoded = {
        "files": {"raw_text.json": {"base64": base64.b64encode(json.dumps({"text": texts[1]}).encode()).decode()}}
    }
    status, several = served.ask([encoded, *(document(text) for text in texts[2:])])
    assert status == 200
    for answer, text in zip(several, texts[1:], strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(expected(text), abs=1e-4)
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda index=index: found.update({index: served.ask(document(texts[index]))}))
        for index in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, text in enumerate(texts):
        assert list(found[index][1]["probabilities"].values()) == pytest.approx(expected(text), abs=1e-4)


def test_metrics_and_a_description_and_a_log_without_content(served: Served) -> None:
    served.ask(GOOD)
    status, metrics = served.ask(b"", method="GET", path="/metrics")
    assert status == 200
    assert b'docml_requests_total{status="200"}' in metrics
    assert b"docml_batch_documents_count" in metrics
    status, description = served.ask(b"", method="GET", path="/openapi.json")
    assert status == 200
    operation = description["paths"]["/invocations"]["post"]
    assert operation["responses"].keys() == {"200", "400", "413", "415", "422", "500", "503"}
    files = operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"][0]["properties"]["files"]
    assert files["required"] == ["raw_text.json"]
    events = served.events()
    assert {"listening", "ready", "request"} <= {event["event"] for event in events}
    assert any(event.get("documents") == 1 and event["status"] == 200 for event in events)
    log = served.log.read_text()
    assert "somebody" not in log
    assert "riddle" not in log


def test_while_loading_it_says_so_and_sigterm_finishes_what_is_in_flight(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path) as served:
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            try:
                seen = served.ask(GOOD)
                break
            except OSError:
                time.sleep(0.02)
        assert seen[0] == 503
        assert "is being loaded" in seen[1]["error"]
        await_ready(served)
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(served.ask(document("slow " + TEXT))))
        thread.start()
        time.sleep(0.4)
        served.process.send_signal(signal.SIGTERM)
        thread.join()
        assert answers[0][0] == 200
        assert served.process.wait(60) == 143
        assert "Traceback" not in served.log.read_text()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: (folder / names.USER_FUNCTIONS).write_text(FUNCTIONS + "\n"),
            "content differs from its sha256|bytes, expected",
        ),
        (
            lambda folder: (folder / names.MANIFEST).write_text((folder / names.MANIFEST).read_text() + "\n"),
            "is not the one that was asked for",
        ),
        (lambda folder: (folder / names.MODEL_CONTEXT).unlink(), "context.json: missing"),
    ],
    ids=["functions", "manifest", "context"],
)
def test_a_folder_that_was_changed_never_answers(tmp_path: Path, damage: Any, said: str, folder: Path) -> None:
    import re
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "toy"))
    sha256 = sha256_file(copy / names.MANIFEST)
    damage(copy)
    with serving(copy, tmp_path, DOCML_MANIFEST_SHA256=sha256) as served:
        assert served.process.wait(120) == 1
        log = served.log.read_text()
        assert re.search(said, log)
        assert "Traceback" not in log


def test_a_port_that_is_taken_is_said(tmp_path: Path, folder: Path, served: Served) -> None:
    with serving(folder, tmp_path, SAGEMAKER_BIND_TO_PORT=str(served.port)) as second:
        assert second.process.wait(120) == 1
        assert f"cannot listen on port {served.port} of 127.0.0.1" in second.log.read_text()
