"""The quality gates: format, lint, types, and which package may import which."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
HEAVY = {"torch", "transformers", "datasets", "accelerate", "evaluate", "sklearn", "wandb", "user_defined_funcs"}


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        # Each version costs as much as the first: what typeshed says of a newer one differs too little to do so in `make test`.
        pytest.param(["mypy", "--python-version", "3.12"], marks=pytest.mark.slow),
        pytest.param(["mypy", "--python-version", "3.13"], marks=pytest.mark.slow),
        ["lint-imports", "--no-cache"],
    ],
    ids=["ruff-check", "ruff-format", "mypy", "mypy-3.12", "mypy-3.13", "import-linter"],
)
def test_gate(command: list[str]) -> None:
    done = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in `sys.modules` of a fresh interpreter after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules_of(package: str, folder: Path) -> list[str]:
    """Every module of a package except its `__main__`, which would run."""
    names = []
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__main__" or not all(part.isidentifier() for part in parts):
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_the_code_location_loads_neither_the_trainer_nor_its_libraries() -> None:
    loaded = loaded_by("import docml_assets.definitions")
    assert "dagster" in loaded
    assert not loaded & (HEAVY | {"docml_trainer", "boto3", "sagemaker", "matplotlib"})


def test_no_module_of_the_orchestrator_loads_the_trainer_or_its_libraries() -> None:
    # The scaffold's templates are files of an experimenter, not modules of the package.
    modules = [name for name in modules_of("docml_assets", ROOT) if ".scaffold." not in name]
    loaded = loaded_by("import " + ", ".join([*modules, *modules_of("resources", ROOT)]))
    assert not loaded & (HEAVY | {"docml_trainer"})


def test_resources_know_neither_dagster_nor_the_assets() -> None:
    loaded = loaded_by("import " + ", ".join(modules_of("resources", ROOT)))
    assert not loaded & (HEAVY | {"dagster", "docml_assets", "docml_trainer"})


def test_the_trainer_loads_neither_dagster_nor_the_orchestrator() -> None:
    slow = "not {'transformers.pipelines', 'transformers.modeling_utils'} & set(sys.modules)"  # until a model asks for them
    modules = ", ".join(modules_of("docml_trainer", ROOT / "trainer_image"))
    loaded = loaded_by(f"import sys, {modules}\nassert {slow}, 'a training starts by seconds later'")
    assert "docml_contract" in loaded
    assert not loaded & {"dagster", "docml_assets", "resources"}


def test_the_contract_needs_pydantic_and_the_standard_library_only() -> None:
    pydantic = loaded_by(
        "from pydantic import BaseModel, Field, TypeAdapter\nclass A(BaseModel): a: int = Field(1, ge=0)"
    )
    loaded = loaded_by("import " + ", ".join(modules_of("docml_contract", ROOT / "trainer_image")))
    others = loaded - pydantic - set(sys.stdlib_module_names) - {"docml_contract"}
    assert not {name for name in others if not name.startswith("_sysconfigdata")}


def test_no_module_reads_the_environment_or_builds_a_client_at_import() -> None:
    packages = [*modules_of("docml_assets", ROOT), *modules_of("resources", ROOT)]
    modules = ", ".join(name for name in packages if ".scaffold." not in name)
    # os.environ is replaced once the libraries are in, by one that tells who reads docml's own settings.
    code = f"""
import os, dagster
class Watched(dict):
    def _tell(self, key):
        if str(key).startswith(("DOCML_", "AWS_", "WANDB_")):
            raise SystemExit(f"{{key}} is read at import")
    def __getitem__(self, key): self._tell(key); return super().__getitem__(key)
    def get(self, key, default=None): self._tell(key); return super().get(key, default)
    def __contains__(self, key): self._tell(key); return super().__contains__(key)
os.environ = Watched(os.environ)
import {modules}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
