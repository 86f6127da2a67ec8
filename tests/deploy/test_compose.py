"""deploy/compose.yaml and deploy/Dockerfile: what they name exists, and every setting they pass is a setting."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
OURS = ["code", "daemon", "webserver"]


def env_example() -> dict[str, str]:
    lines = (DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_compose_holds_to_its_schema() -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_is_named_exists() -> None:
    for name in OURS:
        build = COMPOSE["services"][name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        for volume in COMPOSE["services"][name]["volumes"]:
            assert (DEPLOY / volume.split(":")[0]).is_dir()
    for line in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY"):
            sources = [word for word in line.split()[1:-1] if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), line


@pytest.mark.parametrize("name", OURS)
def test_commands_and_their_options_exist(name: str) -> None:
    command = COMPOSE["services"][name]["command"]
    words = [word for word in command[1:] if re.fullmatch(r"[a-z][a-z-]+", word)]
    options = [word for word in command if word.startswith("--")]
    sub_commands = words[:2] if command[0] == "dagster" else words[:1] if command[0] == "dagster-daemon" else []
    shown = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *sub_commands, "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [option for option in options if option not in shown] == []


def test_the_services_use_the_workspace_of_the_deployment() -> None:
    location = yaml.safe_load((DEPLOY / "workspace.yaml").read_text(encoding="utf-8"))["load_from"][0]["grpc_server"]
    code = COMPOSE["services"]["code"]["command"]
    assert location["host"] in COMPOSE["services"]
    assert str(location["port"]) == code[code.index("--port") + 1]
    assert location["location_name"] == code[code.index("--location-name") + 1]


def test_the_instance_configuration_gets_every_variable_it_reads() -> None:
    text = (DEPLOY / "dagster" / "dagster.yaml").read_text(encoding="utf-8")
    read = set(re.findall(r"env:\s*\"?([A-Z_][A-Z0-9_]*)", text))
    given = set(env_example()) | set(COMPOSE["services"]["code"]["environment"])
    assert read
    assert read - given == set()
    assert COMPOSE["services"]["code"]["environment"]["DAGSTER_POSTGRES_URL"].startswith("postgresql+psycopg2://")


def test_settings_are_documented_and_secrets_are_references() -> None:
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (ROOT / "docs/deployment.md").read_text(encoding="utf-8")))
    example = env_example()
    own = {key for key in example if key.startswith(("DOCML_", "WANDB_"))}
    assert own - documented == set()
    assert {key for key in documented if key.startswith("DOCML_")} - own == {
        "DOCML_EXPERIMENTS",  # set by the compose file
        "DOCML_WORKER_PYTHON",
        "DOCML_S3_PATH_STYLE",
        "DOCML_FORK_SERVER",  # of jobs on this machine
    }
    for key in ("DOCML_LABELS_URL", "WANDB_API_KEY"):
        assert example[key].startswith("secretsmanager:")


def test_the_ui_is_not_offered_to_the_network() -> None:
    assert COMPOSE["services"]["webserver"]["ports"] == ["127.0.0.1:3000:3000"]
    assert "ports" not in COMPOSE["services"]["postgres"]
