"""README on a bare machine: its prerequisites are enough, its two commands do what it says. `make test-distros` runs this."""

import os
import re
import shlex

import pytest

from tests.distros.bare_machine import ROOT, BareMachine, bare_machine

PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
MODELS = ("minilm", "bag-of-words")
# What only torch for GPUs brings along is not pinned: which of it comes depends on the build.
OF_TORCH = ("torch==", "nvidia-", "cuda-", "triton")

UI = """cd docml
make ui >ui.log 2>&1 &
for second in $(seq 120); do
  .venv/bin/python -c 'from urllib.request import Request, urlopen
request = Request("http://127.0.0.1:3000/graphql", b"{\\"query\\": \\"{ assetNodes { assetKey { path } } }\\"}")
request.add_header("Content-Type", "application/json")
print(urlopen(request).read().decode())' 2>error.log && exit
  sleep 1
done
cat ui.log error.log
exit 1"""


@pytest.mark.distros
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("release", PYTHON)
def test_the_commands_of_the_readme(release: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    prerequisites = re.search(r"`apt-get install ([a-z0-9 -]+ make git)`", readme)
    assert prerequisites is not None
    with bare_machine(release, ROOT / "test-output/distros" / release) as machine:
        machine.run("apt-get update -q", user="root")
        machine.run(
            f"DEBIAN_FRONTEND=noninteractive apt-get install -q -y {prerequisites[1]}", user="root", timeout=1200
        )
        machine.copy_checkout("docml")

        demo = machine.run(f"cd docml && make demo {torch_index()}", timeout=3000)
        assert machine.run("docml/.venv/bin/python --version").startswith(f"Python {PYTHON[release]}.")
        print(demo)
        check_scores(demo)
        assert unpinned(machine) == []

        again = machine.run(f"cd docml && make demo {torch_index()}", network=False)
        assert "starting the job" not in again
        check_scores(again)
        assert '"best_torchscript_model"' in machine.run(UI, network=False)


def torch_index() -> str:
    index = os.environ.get("TORCH_INDEX")
    return f"TORCH_INDEX={shlex.quote(index)}" if index else ""


def check_scores(said: str) -> None:
    """The demo ends with a score for each model, and with where its report lies."""
    assert "Scores on 36 test documents" in said
    for model in MODELS:
        row = re.search(rf"^{model} +(0\.\d+|1\.000) \(", said, flags=re.MULTILINE)
        assert row is not None, said
        assert float(row[1]) > 0.5  # four labels: a guess has .25
    assert said.rstrip().splitlines()[-1].endswith("run_1/inference/report.html")


def unpinned(machine: BareMachine) -> list[str]:
    """What was installed in another version than the lock names, or without being named there."""
    pins = {pin for pin in machine.run("cat docml/requirements/demo.txt").split() if "==" in pin}
    listed = machine.run(
        "docml/.venv/bin/python -m pip list --format freeze --exclude-editable --exclude pip --exclude setuptools"
    )
    installed = [re.sub(r"\+.*", "", line.lower().replace("_", "-")) for line in listed.split()]
    assert len(installed) > 50
    return [line for line in installed if line not in pins and not line.startswith(OF_TORCH)]
