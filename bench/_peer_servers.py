"""Two peers of bench/serve.py, programs: `python _peer_servers.py plain|threads FOLDER PORT`. _litserve_server.py is the third.

They answer what docml serve answers, from the same request, with the same encode_data and the same TorchScript file: as short as their
frameworks allow, and without anything that checks a request.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any


class Model:
    """encode_data and the model of a deployment folder, without the rest of it."""

    def __init__(self, folder: Path) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.module = torch.jit.load(str(folder / "model.pt"), map_location=self.device).eval()
        for part in self.module.modules():  # the trace makes its masks on the device that it was traced on
            for name in part._c._method_names():
                for node in part._c._get_method(name).graph.findAllNodes("prim::Constant"):
                    if node.output().type().kind() == "DeviceObjType":
                        node.s_("value", self.device)
        self.labels = json.loads((folder / "export.json").read_text())["labels"]
        functions: dict[str, Any] = {}
        exec((folder / "user_defined_funcs.py").read_text(), functions)
        self.encode_text = functions["encode_text"]

    def encode(self, content: Any) -> list[int]:
        """A request's token ids."""
        return list(self.encode_text(json.loads(content["files"]["raw_text.json"])["text"]))

    def predict(self, documents: list[list[int]]) -> list[list[float]]:
        """Probabilities, of a batch that is padded to its longest document."""
        import torch

        longest = max(map(len, documents))
        ids, mask = (torch.zeros(len(documents), longest, dtype=torch.int64) for _ in range(2))
        for row, document in enumerate(documents):
            ids[row, : len(document)], mask[row, : len(document)] = torch.tensor(document), 1
        with torch.inference_mode():
            logits = self.module(ids.to(self.device), mask.to(self.device))["logits"]
            found: list[list[float]] = logits.softmax(1).tolist()
        return found

    def content(self, probabilities: list[float]) -> dict[str, Any]:
        """An answer."""
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return {
            "label": self.labels[best],
            "probability": probabilities[best],
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
        }


def serve_plain(folder: Path, port: int, threads: bool = False) -> None:
    """One handler, one document at a time; with `threads` not in the event loop, but as starlette runs what blocks."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    model = Model(folder)

    def answer(content: Any) -> dict[str, Any]:
        return model.content(model.predict([model.encode(content)])[0])

    async def invocations(request: Request) -> JSONResponse:
        content = await request.json()
        return JSONResponse(await run_in_threadpool(answer, content) if threads else answer(content))

    async def ping(request: Request) -> JSONResponse:
        return JSONResponse({})

    routes = [Route("/invocations", invocations, methods=["POST"]), Route("/ping", ping)]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning")


def serve_with_threads(folder: Path, port: int) -> None:
    """The plain handler, with threads."""
    serve_plain(folder, port, threads=True)


if __name__ == "__main__":
    program = {"plain": serve_plain, "threads": serve_with_threads}[sys.argv[1]]
    program(Path(sys.argv[2]), int(sys.argv[3]))
