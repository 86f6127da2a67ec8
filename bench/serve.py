"""docml serve against LitServe and a plain starlette handler, with and without threads: the same requests, the same encode_data, the same TorchScript file.

Sixteen clients keep their connections and send their next request as soon as they have an answer. The servers take turns and are halted
meanwhile; the median of their turns counts. What a lone request costs beside the model's own call is measured on one document, in turns with
that call alone.

The models are a BERT of two layers of width 128 and MiniLM: what answers on two cores without a GPU; where there is one, all servers take it.
The documents are as long as messages or tickets are (20 to 120 words), and with MiniLM posts of 20 Newsgroups as well, to 512 tokens.

LitServe comes into a folder of its own (bench/.cache), with the libraries that it brings, so that it changes nothing of docml's environment.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import inference
from bench._deployments import deployment_folder

ROOT = Path(__file__).parents[1]
CACHE = Path(__file__).parent / ".cache"
LITSERVE = "litserve==0.2.19"
LABELS = [f"label_{index:02d}" for index in range(20)]
CLIENTS = 16
ROUNDS = 4
SECONDS, WARM_UP_SECONDS = 4.0, 2.0  # of a turn
ALONE = {"tiny": 800, "minilm": 200}  # requests of one client
REQUESTS = 100_000  # over which memory is measured
DOCUMENTS = 200
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # of the environment
SERVERS = ("docml", "litserve", "threads", "plain")
FUNCTIONS = """
import json

from tokenizers import Tokenizer

TOKENIZER = Tokenizer.from_file({path!r})
TOKENIZER.enable_truncation({length})
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
    short, long = requests(short_texts()), requests(posts())
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as folder:
        for name in ("tiny", "minilm"):
            source = FUNCTIONS.format(path=str(inference.minilm() / "tokenizer.json"), length=inference.LENGTH)
            deployment = deployment_folder(Path(folder) / name, name, LABELS, "raw_text.json", source)
            with ExitStack() as stack:
                servers = {kind: stack.enter_context(serving(kind, deployment, Path(folder))) for kind in SERVERS}
                rows += measure_alone(servers["docml"], deployment, name, short[0])
                rows += measure_together(servers, f"{name}, 20 to 120 words", short)
                if name == "minilm":
                    rows += measure_together(servers, f"{name}, posts of 20 Newsgroups", long)
                else:
                    rows += measure_memory(servers["docml"], short)
    return rows


def install_litserve() -> None:
    """Into bench/.cache, once."""
    if not (CACHE / LITSERVE / "litserve").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--target", str(CACHE / LITSERVE), LITSERVE], check=True)


def requests(texts: Sequence[str]) -> list[bytes]:
    """HTTP requests with these texts as raw_text.json."""
    made = []
    for text in texts:
        body = json.dumps({"files": {"raw_text.json": json.dumps({"text": text})}}).encode()
        head = f"POST /invocations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return made


def short_texts() -> list[str]:
    """Beginnings of the bundled documents, of 20 to 120 words: as long as a message or a ticket."""
    random = np.random.default_rng(0)
    files = sorted((ROOT / "docml_assets/sample/artifacts").glob("*/raw_text.json"))
    found = []
    for index in range(DOCUMENTS):
        words = json.loads(files[index % len(files)].read_text())["text"].split()
        found.append(" ".join(words[: int(random.integers(20, 120))]))
    return found


def posts() -> list[str]:
    """Posts of 20 Newsgroups as they are: 226 tokens on average, where they are cut at 512."""
    texts, _, _ = inference.documents()
    return [texts[index] for index in np.random.default_rng(0).permutation(len(texts))[:DOCUMENTS]]


# --- servers


@dataclass(frozen=True)
class Served:
    """A server that answers. It is halted while another one is measured."""

    port: int
    group: int  # of its processes

    @contextmanager
    def running(self) -> Iterator[int]:
        """Its port, where it answers within the block."""
        os.killpg(self.group, signal.SIGCONT)
        try:
            yield self.port
        finally:
            os.killpg(self.group, signal.SIGSTOP)

    def memory_mb(self) -> float:
        """Proportional set size of its processes: memory that they share counts once."""
        total = 0
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int((path / "stat").read_text().rpartition(")")[2].split()[2]) == self.group:
                    lines = (path / "smaps_rollup").read_text().splitlines()
                    total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024


@contextmanager
def serving(server: str, deployment: Path, folder: Path) -> Iterator[Served]:
    """A server, halted once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    kept = {key: value for key, value in os.environ.items() if key in KEPT}
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
        os.killpg(process.pid, signal.SIGSTOP)
        yield Served(port, process.pid)
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


def measure_alone(served: Served, deployment: Path, name: str, sent: bytes) -> list[dict[str, Any]]:
    """One client, one document, against the model alone."""
    count = ALONE[name] // ROUNDS
    turns = []
    with served.running() as port:
        ask(port, [sent], 1, count=50)
    for _ in range(ROUNDS):
        with served.running() as port:
            ours = ask(port, [sent], 1, count=count)
        turns.append((ours, bare_calls(deployment, sent, count)))
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
    """Seconds of the model's call on a document that is encoded already, until its logits are there."""
    import torch

    from bench._peer_servers import Model

    model = Model(deployment)
    ids = torch.tensor([model.encode(json.loads(sent.partition(b"\r\n\r\n")[2]))])
    mask, took = torch.ones_like(ids), []
    with torch.inference_mode():
        for _ in range(count + 10):
            started = time.perf_counter()
            model.module(ids.to(model.device), mask.to(model.device))["logits"].cpu()
            took.append(time.perf_counter() - started)
    return took[10:]


def measure_together(servers: Mapping[str, Served], what: str, sent: Sequence[bytes]) -> list[dict[str, Any]]:
    """Sixteen clients: answers a second, and how long one takes; the median of several turns, which the servers take in turn."""
    rates: dict[str, list[float]] = {kind: [] for kind in servers}
    took: dict[str, list[float]] = {kind: [] for kind in servers}
    for number in range(-1, ROUNDS):
        for kind, served in servers.items():
            with served.running() as port:
                started = time.perf_counter()
                seconds = ask(port, sent, CLIENTS, seconds=SECONDS if number >= 0 else WARM_UP_SECONDS)
                if number >= 0:
                    rates[kind].append(len(seconds) / (time.perf_counter() - started))
                    took[kind] += seconds
    medians = {kind: float(np.median(found)) for kind, found in rates.items()}
    latencies = {kind: np.percentile(np.array(found) * 1000, (50, 99)) for kind, found in took.items()}
    ours = medians.pop("docml")
    what = f"{what}, {CLIENTS} clients"
    return [
        _row(what, "documents/s", ours, medians, ratio=ours / max(medians.values())),
        _row(f"{what}, times the plain handler (goal 2)", "", ours / medians["plain"]),
        *(
            _row(f"{what}: p{percentile}", "ms", latencies["docml"][place], {k: latencies[k][place] for k in medians})
            for place, percentile in enumerate((50, 99))
        ),
    ]


def measure_memory(served: Served, sent: Sequence[bytes]) -> list[dict[str, Any]]:
    """What the server's processes hold after each tenth of the requests."""
    held = []
    for _ in range(10):
        with served.running() as port:
            ask(port, sent, CLIENTS, count=REQUESTS // 10)
        held.append(served.memory_mb())
    what = f"memory after {REQUESTS:,} requests"
    return [
        _row(what, "MB", held[-1], {f"after {REQUESTS // 10 * (i + 1):,}": value for i, value in enumerate(held[:-1])}),
        _row(f"{what}, beyond that after a tenth", "MB", held[-1] - held[0]),
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
