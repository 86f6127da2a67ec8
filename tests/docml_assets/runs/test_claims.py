import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from docml_assets.errors import SettingsError
from docml_assets.experiment.folder import ExperimentFolder
from docml_assets.runs.claims import (
    Claim,
    RunChanged,
    RunClaimed,
    changed_keys,
    claim_next,
    claim_or_continue,
    claim_run,
    claimed_runs,
    next_run,
    read_claim,
    run_folders,
    write_snapshot,
)
from docml_contract.base import BadName
from docml_contract.names import RunPlace
from resources.errors import StoreError
from resources.store import Store
from resources.store.manifests import check_finished, read_manifest
from tests.docml_assets.experiment.experiments import FUNCTIONS, SETTINGS, settings_text, write_experiment

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), environment={})


def folder(root: Path, settings: str = SETTINGS, functions: str = FUNCTIONS) -> ExperimentFolder:
    return ExperimentFolder.load(write_experiment(root, "EXP-1", settings, functions))


def claim(store: Store, content: ExperimentFolder | Claim, number: int = 1, request: str = "request") -> Claim:
    return claim_run(store, content, number, trigger={"kind": "test"}, request_id=request)


def test_a_claim_holds_everything_of_the_folder(store: Store, tmp_path: Path) -> None:
    made = claim(store, folder(tmp_path))
    assert read_claim(store, "EXP-1", 1) == made
    assert (made.settings_text, made.functions_source) == (SETTINGS, FUNCTIONS)
    assert (made.experiment, made.run, made.trigger, made.parent_run) == ("EXP-1", 1, {"kind": "test"}, None)
    assert read_claim(store, "EXP-1", 2) is None


def test_the_number_in_the_settings_is_the_claims(store: Store, tmp_path: Path) -> None:
    assert claim(store, folder(tmp_path), 7).settings.run_num == 7


def test_the_same_request_gets_its_claim_again(store: Store, tmp_path: Path) -> None:
    first = claim(store, folder(tmp_path))
    assert claim(store, folder(tmp_path)) == first


def test_another_request_is_refused_with_the_remedy(store: Store, tmp_path: Path) -> None:
    claim(store, folder(tmp_path))
    with pytest.raises(RunClaimed, match=r"run 1 of EXP-1 was claimed.*--next"):
        claim(store, folder(tmp_path), request="another")


def test_wrong_settings_take_no_number(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        claim(store, folder(tmp_path, settings_text("SPLIT = 1")))
    assert claimed_runs(store, "EXP-1") == []


class LostAnswer(Store):
    """Writes, and then fails as a broken connection does."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        super().put_if_absent(key, data)
        raise StoreError("connection lost")


class LostRequest(Store):
    """Fails before anything is written."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        raise StoreError("connection lost")


def test_a_lost_answer_is_settled_by_the_request_id(store: Store, tmp_path: Path) -> None:
    losing = LostAnswer(store.url, {})
    made = claim(losing, folder(tmp_path))
    assert read_claim(store, "EXP-1", 1) == made
    with pytest.raises(StoreError):
        claim(losing, folder(tmp_path), request="another")


def test_a_lost_request_claims_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        claim(LostRequest(store.url, {}), folder(tmp_path))
    assert read_claim(store, "EXP-1", 1) is None


def test_next_takes_the_number_after_the_highest_and_is_repeatable(store: Store, tmp_path: Path) -> None:
    content = folder(tmp_path)
    claim(store, content, 3)
    second = claim_next(store, content, trigger={}, request_id="next")
    assert second.run == 4
    assert claim_next(store, content, trigger={}, request_id="next") == second
    assert claimed_runs(store, "EXP-1") == [3, 4]
    assert next_run(store, "EXP-1") == 5


def test_next_passes_a_number_that_was_just_taken(store: Store, tmp_path: Path) -> None:
    content = folder(tmp_path)

    class Raced(Store):
        """Another process claims between our look and our claim."""

        def list_folders(self, prefix: str = "") -> list[str]:
            found = super().list_folders(prefix)
            if "run_1" not in found:
                claim(store, content, 1, request="rival")
            return found

    assert claim_next(Raced(store.url, {}), content, trigger={}, request_id="ours").run == 2


def test_a_run_can_take_an_earlier_ones_content(store: Store, tmp_path: Path) -> None:
    first = claim(store, folder(tmp_path))
    folder(tmp_path, settings_text("SPLIT_SEED = 5"))
    second = claim_next(store, first, trigger={"kind": "new data"}, request_id="sensor")
    assert (second.run, second.parent_run, second.settings_text) == (2, 1, first.settings_text)


RACER = """
import sys, time
from pathlib import Path
from docml_assets.runs.claims import RunClaimed, claim_next, claim_run
from docml_assets.experiment.folder import ExperimentFolder
from resources.store import Store
store, folder, number, request, start = sys.argv[1:]
content = ExperimentFolder.load(Path(folder))
store = Store.open(store, environment={})
while time.time() < float(start):
    pass
try:
    if number == "next":
        print(claim_next(store, content, trigger={}, request_id=request).run)
    else:
        print(claim_run(store, content, int(number), trigger={}, request_id=request).run)
except RunClaimed:
    print("lost")
"""


def race(store: Store, path: Path, number: str, racers: int) -> list[str]:
    start = str(time.time() + 2.5)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.url, str(path), number, f"request-{index}", start],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'trainer_image'}"},
        )
        for index in range(racers)
    ]
    return [process.communicate(timeout=60)[0].strip() for process in processes]


def test_of_racing_processes_one_wins(store: Store, tmp_path: Path) -> None:
    answers = race(store, folder(tmp_path).path, "1", 4)
    assert sorted(answers) == ["1", "lost", "lost", "lost"]
    winner = read_claim(store, "EXP-1", 1)
    assert winner is not None
    assert winner.request_id == f"request-{answers.index('1')}"


def test_racing_processes_that_take_the_next_number_all_get_one(store: Store, tmp_path: Path) -> None:
    assert sorted(race(store, folder(tmp_path).path, "next", 4)) == ["1", "2", "3", "4"]


ROUNDS = """
import os, sys, time
from pathlib import Path
from docml_assets.runs.claims import claim_next
from docml_assets.experiment.folder import ExperimentFolder
from resources.store import Store
root, folder, racers, rounds = sys.argv[1:]
content = ExperimentFolder.load(Path(folder))
for round_number in range(int(rounds)):
    reading, writing = os.pipe()
    start = time.time() + 0.5
    children = []
    for racer in range(int(racers)):
        child = os.fork()  # before any store is opened: its threads would not come along
        if not child:
            store = Store.open(f"{root}/{round_number}", environment={})
            while time.time() < start:
                pass
            number = claim_next(store, content, trigger={}, request_id=f"racer-{racer}").run
            os.write(writing, b"%d " % number)
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    os.close(writing)
    print(*sorted(map(int, os.fdopen(reading).read().split())), "failed:", sum(map(bool, codes)))
"""


def distinct_numbers(tmp_path: Path, racers: int, rounds: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, str(tmp_path / "stores"), str(folder(tmp_path).path), str(racers), str(rounds)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'trainer_image'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = f"{' '.join(map(str, range(1, racers + 1)))} failed: 0"
    assert done.stdout.splitlines() == [expected] * rounds, done.stderr


def test_sixty_four_racing_processes_get_distinct_numbers(tmp_path: Path) -> None:
    distinct_numbers(tmp_path, racers=64, rounds=1)


@pytest.mark.slow
def test_they_do_so_round_after_round(tmp_path: Path) -> None:
    distinct_numbers(tmp_path, racers=64, rounds=20)


def test_a_claimed_run_continues_while_its_folder_says_the_same(store: Store, tmp_path: Path) -> None:
    made = claim_or_continue(store, folder(tmp_path), 1, trigger={}, request_id="a")
    for same in (
        SETTINGS,
        "; a comment\n" + SETTINGS,
        settings_text(
            "RUN_NUM = 1\nRUN_TRAINING = false\nTRAINING_INSTANCE_TYPE = ml.g5.2xlarge\nMAX_COST_USD = 3\nWANDB_MODE = offline"
        ),
    ):
        assert claim_or_continue(store, folder(tmp_path, same), 1, trigger={}, request_id="b") == made
    commented = folder(tmp_path, SETTINGS, f"# a comment\n{FUNCTIONS}")
    assert claim_or_continue(store, commented, 1, trigger={}, request_id="b") == made


def test_a_changed_folder_names_the_keys_and_the_next_number(store: Store, tmp_path: Path) -> None:
    claim(store, folder(tmp_path))
    changed = settings_text("SPLIT_SEED = 5\nRUN_NUM = 1", "epochs = 9\nmine = 1", "learning_rate = 1 -> 2")
    with pytest.raises(RunChanged) as caught:
        claim_or_continue(
            store, folder(tmp_path, changed, FUNCTIONS.replace("WIDTH = 4", "WIDTH = 5")), 1, trigger={}, request_id="b"
        )
    message = str(caught.value)
    for named in (
        "SPLIT_SEED",
        "[hyperparameters] epochs",
        "[hyperparameters] mine",
        "[tunable] learning_rate",
        "user_defined_funcs.py",
    ):
        assert named in message
    assert "--next" in message
    assert "RUN_NUM = 2" in message


def test_changed_keys_of_an_unchanged_folder(store: Store, tmp_path: Path) -> None:
    content = folder(tmp_path)
    assert changed_keys(claim(store, content), content) == []


def test_the_snapshot_is_written_from_the_claim(store: Store, tmp_path: Path) -> None:
    made = claim(store, folder(tmp_path))
    folder(tmp_path, settings_text("SPLIT_SEED = 5"))  # the folder moves on
    manifest = write_snapshot(store, made)
    place = RunPlace("EXP-1", 1).snapshot
    assert store.get(f"{place}/settings.ini").decode() == SETTINGS
    assert store.get(f"{place}/user_defined_funcs.py").decode() == FUNCTIONS
    assert json.loads(store.get(f"{place}/settings.json"))["split_seed"] == 13
    assert [entry.path for entry in manifest.files] == ["settings.ini", "settings.json", "user_defined_funcs.py"]
    check_finished(store, manifest, place, deep=True)
    assert write_snapshot(store, made) == manifest


def test_a_half_written_snapshot_is_completed(store: Store, tmp_path: Path) -> None:
    made = claim(store, folder(tmp_path))
    store.put(f"{made.place.snapshot}/settings.ini", b"half")
    assert read_manifest(store, made.place.snapshot) is None
    check_finished(store, write_snapshot(store, made), made.place.snapshot, deep=True)


def test_the_data_version_is_the_frozen_meaning(store: Store, tmp_path: Path) -> None:
    first = write_snapshot(store, claim(store, folder(tmp_path), 1))
    same = write_snapshot(store, claim(store, folder(tmp_path, "# comment\n" + settings_text("RUN_NUM = 2")), 2))
    other = write_snapshot(store, claim(store, folder(tmp_path, settings_text("SPLIT_SEED = 5")), 3))
    assert first.data_version == same.data_version != other.data_version


KILLED = """
import os, signal, sys
from pathlib import Path
from docml_assets.runs.claims import claim_run
from docml_assets.experiment.folder import ExperimentFolder
from resources.store import Store
store, folder = sys.argv[1:]
claim_run(Store.open(store, environment={}), ExperimentFolder.load(Path(folder)), 1, trigger={}, request_id="killed")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_the_run_goes_on_from_its_claim(store: Store, tmp_path: Path) -> None:
    content = folder(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, store.url, str(content.path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'trainer_image'}"},
    )
    assert killed.returncode == -signal.SIGKILL
    made = claim_or_continue(store, content, 1, trigger={}, request_id="restarted")
    assert made.request_id == "killed"
    assert write_snapshot(store, made).run == 1


def test_runs_are_the_claimed_folders(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), environment={})
    for key in (
        "EXP/run_2/experiment/CLAIM.json",
        "EXP/run_10/experiment/CLAIM.json",
        "EXP/run_11/other",
        "EXP/run_x/a",
        "EXP/data/b",
    ):
        store.put(key, b"")
    assert run_folders(store, "EXP") == [2, 10, 11]
    assert claimed_runs(store, "EXP") == [2, 10]
    assert next_run(store, "EXP") == 12  # never a number that is in use


def test_an_experiment_without_runs_begins_with_one(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "none"), environment={})
    assert claimed_runs(store, "EXP") == []
    assert next_run(store, "EXP") == 1
    with pytest.raises(BadName):
        next_run(store, "../EXP")


def test_a_later_key_that_comes_or_goes_is_a_change(store: Store, tmp_path: Path) -> None:
    plain = folder(tmp_path)
    optional = folder(tmp_path, settings_text("FILES_OPTIONAL = raw_text.json"))
    assert changed_keys(claim(store, plain, 1), optional) == ["FILES_OPTIONAL"]
    assert changed_keys(claim(store, optional, 2), plain) == ["FILES_OPTIONAL"]


def test_what_changed_for_one_model_names_its_section(store: Store, tmp_path: Path) -> None:
    plain = folder(tmp_path)
    own = folder(tmp_path, settings_text("") + "[hyperparameters.small]\nepochs = 9\n")
    assert changed_keys(claim(store, plain), own) == ["[hyperparameters.small] epochs"]


def test_a_run_of_before_quotes_were_understood_goes_on_as_it_was(store: Store, tmp_path: Path) -> None:
    made = claim(store, folder(tmp_path, settings_text('IGNORED_LABELS = "a"')))
    assert made.settings.ignored_labels == ("a",)
    before = json.loads(made.to_bytes())
    del before["dialect"]
    store.put(made.place.claim, json.dumps(before).encode())
    found = read_claim(store, "EXP-1", 1)
    assert found is not None
    assert found.settings.ignored_labels == ('"a"',)
