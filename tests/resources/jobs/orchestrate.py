"""An orchestrator to be killed: runs the job of a spec file and prints what it is told.

python -m tests.resources.jobs.orchestrate local|sagemaker STORE SPEC HOLDER
"""

import os
import sys
from pathlib import Path
from typing import Any

from docml_contract.jobs import JobSpec
from resources.jobs.engine.engine import Engine
from resources.jobs.local.backend import LocalBackend
from resources.jobs.sagemaker.backend import SageMakerBackend
from resources.store import Store
from tests.contracts.jobs_contract import FILES
from tests.resources.jobs.cloud import FAKE_TRAINER, HURRY


class Printing:
    def line(self, host: str, text: str) -> None:
        print(text, flush=True)

    def event(self, event: dict[str, Any]) -> None:
        pass

    def status(self, text: str) -> None:
        print(f"status: {text}", flush=True)


def main(kind: str, url: str, spec_file: str, holder: str) -> None:
    environment = dict(os.environ)
    store = Store.open(url, environment=environment)
    backend: Any = LocalBackend(store, environment, FAKE_TRAINER)
    if kind == "sagemaker":
        backend = SageMakerBackend(store, environment, **HURRY)
    spec = JobSpec.from_bytes(Path(spec_file).read_bytes(), spec_file)
    result = Engine(store, backend).run(spec, FILES, holder=holder, listener=Printing())
    print(f"result: {result.name} attempt {result.attempt} launched {result.launched}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
