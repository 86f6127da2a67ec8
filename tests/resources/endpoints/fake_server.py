"""Stands for `docml_trainer serve`: refuses a folder that was changed, answers with what it holds. Standard library only, ready at once."""

import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

folder = Path(os.environ.get("DOCML_MODEL_FOLDER") or Path(os.environ["SAGEMAKER_BASE_DIR"]) / "model")
manifest = (folder / "MANIFEST.json").read_bytes()
if hashlib.sha256(manifest).hexdigest() != os.environ["DOCML_MANIFEST_SHA256"]:
    sys.exit("MANIFEST.json is not the one that was asked for")
content = json.loads(manifest)
for name, sha256 in content["files"].items():
    if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
        sys.exit(f"{name}: content differs from its sha256")
if content["model"] == "broken":
    sys.exit("this model cannot be loaded")
identity = {key: content[key] for key in ("experiment", "run", "model")}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200, identity)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body == b"bad":
            self.answer(400, {"error": "the body is not JSON"})
        else:
            self.answer(200, {**identity, "pid": os.getpid()})

    def answer(self, status: int, content: dict) -> None:  # type: ignore[type-arg]
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


address = (os.environ.get("DOCML_SERVE_HOST", "127.0.0.1"), int(os.environ["SAGEMAKER_BIND_TO_PORT"]))
ThreadingHTTPServer(address, Handler).serve_forever()
