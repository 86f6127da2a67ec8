"""The peer of bench/serve.py that is made with LitServe: `python _litserve_server.py FOLDER PORT`. Its worker batches."""

import sys
from pathlib import Path
from typing import Any

import litserve
from _peer_servers import Model

BATCH = 16  # as many as there are clients
WINDOW_SECONDS = 0.002  # it waits so long for company; with less it hardly finds any


class Api(litserve.LitAPI):  # type: ignore[misc]
    """At module level, since it travels to the worker's process."""

    def setup(self, device: str) -> None:
        self.model = Model(Path(sys.argv[1]))

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # an annotation would say how a request is parsed
        return self.model.encode(request)

    def batch(self, inputs: list[list[int]]) -> list[list[int]]:
        return inputs

    def predict(self, inputs: list[list[int]]) -> list[list[float]]:
        return self.model.predict(inputs)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return self.model.content(output)


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=WINDOW_SECONDS, api_path="/invocations")
    server = litserve.LitServer(api, accelerator="cpu", healthcheck_path="/ping", fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
