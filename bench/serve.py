"""docml serve against LitServe and a plain starlette handler, with and without threads: the same requests, the same encode_data, the same TorchScript file.

Sixteen clients keep their connections and send their next request as soon as they have an answer. The servers take turns, twice each, and the
better turn counts. What a lone request costs beside the model's own call is measured on one document, in turns with that call alone.

LitServe comes into a folder of its own (bench/.cache), with the libraries that it brings, so that it changes nothing of docml's environment.
BENCH_SERVE_REQUESTS=100000 measures memory over that many requests (20,000 by default).
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench.inference import export, minilm
from docml_contract import names
from docml_contract.manifests import Manifest, ModelContext, describe_folder, utc_now

ROOT = Path(__file__).parents[1]
CACHE = Path(__file__).parent / ".cache"
LITSERVE = "litserve==0.2.19"
LABELS = [f"label_{index:02d}" for index in range(20)]
CLIENTS = 16
SECONDS = {"tiny": 8.0, "minilm": 15.0}  # of a turn
ALONE = {"tiny": 400, "minilm": 150}  # requests of one client
SERVERS = ("docml", "litserve", "threads", "plain")
FUNCTIONS = """
import json

from tokenizers import Tokenizer

TOKENIZER = Tokenizer.from_file({path!r})
TOKENIZER.enable_truncation(128)
TOKENIZER.no_padding()


def encode_text(text):
    return TOKENIZER.encode(text).ids


def get_dataset_features(context):
    from datasets import Features, List, Value

    return Features({{"input_ids": List(Value("uint16"))}})


def encode_data(instance, context):
    return {{"input_ids": encode_text(json.loads(instance["raw_text.json"].read_text())["text"])}}
"""


def run() -> list[dict[str, Any]]:
    install_litserve()
    rows = []
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as folder:
        for name in SECONDS:
            deployment = deployment_folder(Path(folder), name)
            rows += measure_alone(Path(folder), deployment, name)
            rows += measure_together(Path(folder), deployment, name)
        rows += measure_memory(Path(folder), Path(folder) / "tiny")
    return rows


def install_litserve() -> None:
    """Into bench/.cache, once."""
    if not (CACHE / LITSERVE / "litserve").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--target", str(CACHE / LITSERVE), LITSERVE], check=True)


def deployment_folder(folder: Path, name: str) -> Path:
    """A deployment folder of a random classifier that has MiniLM's tokenizer."""
    export(folder / name, name, LABELS)
    context = ModelContext(
        experiment="EXP-1-bench",
        run=1,
        model_name=name,
        model_names=(name,),
        labels=tuple(LABELS),
        own_hyperparameters={},
        production_files=("raw_text.json",),
        model_input_files=("raw_text.json",),
        optional_files=(),
        has_process_func=False,
    )
    (folder / name / names.MODEL_CONTEXT).write_bytes(context.to_bytes())
    source = FUNCTIONS.format(path=str(minilm() / "tokenizer.json"))
    (folder / name / names.USER_FUNCTIONS).write_text(source)
    (folder / name / names.REQUIREMENTS).write_text("")
    manifest = Manifest(
        asset=names.DEPLOYMENT,
        experiment="EXP-1-bench",
        run=1,
        created_at=utc_now(),
        cache_key="0" * 64,
        data_version="0" * 64,
        inputs={},
        code_version="1",
        files=describe_folder(folder / name),
    )
    (folder / name / names.MANIFEST).write_bytes(manifest.to_bytes())
    return folder / name


def requests(count: int) -> list[bytes]:
    """HTTP requests with pieces of the bundled documents, of 20 to 120 words."""
    random = np.random.default_rng(0)
    files = sorted((ROOT / "docml_assets/sample/artifacts").glob("*/raw_text.json"))
    made = []
    for index in range(count):
        words = json.loads(files[index % len(files)].read_text())["text"].split()
        text = " ".join(words[: int(random.integers(20, 120))])
        body = json.dumps({"files": {"raw_text.json": json.dumps({"text": text})}}).encode()
        head = f"POST /invocations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return made


# --- servers


@contextmanager
def serving(server: str, deployment: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """A server that answers: its port, and its process group."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    kept = {
        key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS")
    }
    if server == "docml":
        command = [sys.executable, "-m", "docml_trainer", "serve"]
        kept |= {
            "PYTHONPATH": str(ROOT / "trainer_image"),
            "SAGEMAKER_BASE_DIR": str(folder / "base"),
            "DOCML_MODEL_FOLDER": str(deployment),
            "DOCML_SERVE_HOST": "127.0.0.1",
            "SAGEMAKER_BIND_TO_PORT": str(port),
        }
    else:
        program = ["_litserve_server.py"] if server == "litserve" else ["_peer_servers.py", server]
        command = [sys.executable, str(Path(__file__).with_name(program[0])), *program[1:], str(deployment), str(port)]
        kept |= {"PYTHONPATH": str(CACHE / LITSERVE)} if server == "litserve" else {}
    log = folder / f"{server}.log"
    with log.open("a") as output:
        process = subprocess.Popen(command, env=kept, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{server} does not answer:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def memory_mb(group: int) -> float:
    """Proportional set size of a server's processes: memory that they share counts once."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                lines = (path / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


# --- clients


def ask(port: int, sent: Sequence[bytes], clients: int, *, seconds: float = 1e9, count: int = 10**9) -> list[float]:
    """Seconds of every answer, from `clients` connections, for so long or until so many. RuntimeError at one that is not an answer."""
    return asyncio.run(_ask(port, sent, clients, seconds, count))


async def _ask(port: int, sent: Sequence[bytes], clients: int, seconds: float, count: int) -> list[float]:
    end, took = time.perf_counter() + seconds, list[float]()
    left = iter(range(count))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for index in left:
            started = time.perf_counter()
            if started >= end:
                break
            writer.write(sent[index % len(sent)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
            body = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200") or b'"label"' not in body:
                raise RuntimeError(f"found {head!r} {body[:500]!r}")
            took.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return took


# --- measurements


def measure_alone(folder: Path, deployment: Path, name: str) -> list[dict[str, Any]]:
    """One client, one document, against encode_data and the model alone."""
    (sent,) = requests(1)
    with serving("docml", deployment, folder) as (port, _):
        ask(port, [sent], 1, count=50)
        turns = [
            (ask(port, [sent], 1, count=ALONE[name] // 4), bare_calls(deployment, sent, ALONE[name] // 4))
            for _ in range(4)
        ]
    ours = np.array([second for served, _ in turns for second in served]) * 1000
    model = np.array([second for _, bare in turns for second in bare]) * 1000
    p50, p99 = np.percentile(ours, (50, 99))
    bare50, bare99 = np.percentile(model, (50, 99))
    what = f"{name}: one client, one document"
    return [
        _row(f"{what}: p50", "ms", p50, {"model alone": bare50}),
        _row(f"{what}: p99", "ms", p99, {"model alone": bare99}),
        _row(f"{what}: p50 beyond the model's (limit 2)", "ms", p50 - bare50),
    ]


def bare_calls(deployment: Path, sent: bytes, count: int) -> list[float]:
    """Seconds of the model's call on a document that is encoded already."""
    import torch

    ids = torch.tensor([_encoded(deployment, sent)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(deployment / names.TORCHSCRIPT)).eval()
    mask, took = torch.ones_like(ids), []
    with torch.inference_mode():
        for _ in range(count + 10):
            started = time.perf_counter()
            module(ids, mask)
            took.append(time.perf_counter() - started)
    return took[10:]


def _encoded(deployment: Path, sent: bytes) -> list[int]:
    from bench._peer_servers import Model

    return Model(deployment).encode(json.loads(sent.partition(b"\r\n\r\n")[2]))


def measure_together(folder: Path, deployment: Path, name: str) -> list[dict[str, Any]]:
    """Sixteen clients: answers a second, and how long one takes."""
    sent = requests(200)
    best: dict[str, tuple[float, Any]] = {}
    for server in SERVERS * 2:
        with serving(server, deployment, folder) as (port, _):
            ask(port, sent, CLIENTS, count=100)
            started = time.perf_counter()
            took = ask(port, sent, CLIENTS, seconds=SECONDS[name])
            rate = len(took) / (time.perf_counter() - started)
        best[server] = max(best.get(server, (0.0, None)), (rate, tuple(np.percentile(np.array(took) * 1000, (50, 99)))))
    rates = {server: rate for server, (rate, _) in best.items()}
    ours = rates.pop("docml")
    what = f"{name}: {CLIENTS} clients"
    return [
        _row(what, "documents/s", ours, rates, ratio=ours / max(rates.values())),
        _row(f"{what}, times the plain handler (goal 2)", "", ours / rates["plain"]),
        *(
            _row(f"{what}: p{percentile}", "ms", best["docml"][1][place], {s: best[s][1][place] for s in rates})
            for place, percentile in enumerate((50, 99))
        ),
    ]


def measure_memory(folder: Path, deployment: Path) -> list[dict[str, Any]]:
    """What the server's processes hold after a tenth of the requests, and after all of them."""
    count = int(os.environ.get("BENCH_SERVE_REQUESTS") or 20_000)
    sent = requests(200)
    with serving("docml", deployment, folder) as (port, group):
        ask(port, sent, CLIENTS, count=count // 10)
        before = memory_mb(group)
        ask(port, sent, CLIENTS, count=count - count // 10)
        after = memory_mb(group)
    return [
        _row(f"memory gained from request {count // 10:,} to {count:,} (holds {before:,.0f})", "MB", after - before)
    ]


def _row(
    metric: str, unit: str, ours: float, peers: dict[str, float] | None = None, *, ratio: float | None = None
) -> dict[str, Any]:
    return {
        "bench": "serve",
        "metric": metric,
        "unit": unit,
        "ours": round(float(ours), 2),
        "peers": {name: round(float(value), 2) for name, value in (peers or {}).items()},
        "ratio": None if ratio is None else round(float(ratio), 2),
    }
