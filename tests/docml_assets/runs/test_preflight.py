from pathlib import Path

import pytest

from docml_assets.experiment.settings.settings import parse_settings
from docml_assets.runs.preflight import deployment_problems, finished_in, step_problems, validate
from docml_contract.names import MANIFEST, RunPlace
from resources.errors import StoreError
from resources.store import Store
from tests.docml_assets.experiment.experiments import FUNCTIONS, settings_text, write_experiment

AWS = {
    "DOCML_ENV": "aws",
    "DOCML_STORE": "s3://bucket/prefix",
    "DOCML_SAGEMAKER_ROLE_ARN": "arn:aws:iam::123456789012:role/docml",
    "DOCML_IMAGE": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/docml:1",
    "AWS_REGION": "eu-west-1",
}


def skipped(text: str, store: Store) -> list[str]:
    settings = parse_settings(settings_text(text), "f")
    problems = step_problems(settings, "f", settings_text(text), finished_in(store, "EXP", settings))
    return [problem.found for problem in problems]


def test_skipped_steps_that_a_first_run_needs(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), environment={})
    assert skipped("", store) == []
    assert skipped("RUN_RECONCILIATION = false", store) == [
        "RUN_RECONCILIATION off in run 1, which is to perform RUN_PREPARATION"
    ]
    assert skipped("RUN_PREPARATION = false", store) == [
        "RUN_PREPARATION off in run 1, which is to perform RUN_TRAINING or RUN_TUNING"
    ]
    assert skipped("RUN_TRAINING = false", store) == ["RUN_TRAINING off in run 1, which is to perform RUN_INFERENCE"]
    assert len(skipped("RUN_PREPARATION = false\nRUN_TRAINING = false", store)) == 2
    assert skipped("RUN_PREPARATION = false\nRUN_TRAINING = false\nRUN_INFERENCE = false", store) == []


def test_an_earlier_run_supplies_them(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), environment={})
    place = RunPlace("EXP", 2)
    store.put(f"{place.preparation}/{MANIFEST}", b"{}")
    store.put(f"{place.trained('a', tuned=True)}/{MANIFEST}", b"{}")
    assert skipped("RUN_NUM = 3\nRUN_PREPARATION = false", store) == []
    assert skipped("RUN_NUM = 2\nRUN_PREPARATION = false", store) == []  # finished before in this run
    assert skipped("RUN_NUM = 1\nRUN_PREPARATION = false", store) != []  # later runs do not count
    assert skipped("RUN_NUM = 3\nRUN_RECONCILIATION = false", store) != []
    assert skipped("RUN_NUM = 3\nMODEL_NAMES = a\nRUN_TRAINING = false", store) == []
    assert skipped("RUN_NUM = 3\nMODEL_NAMES = a, b\nRUN_TRAINING = false", store) != []


def test_a_store_that_does_not_answer_may_have_them(tmp_path: Path) -> None:
    class Silent(Store):
        def list_folders(self, prefix: str = "") -> list[str]:
            raise StoreError("no answer")

    assert skipped("RUN_TRAINING = false", Silent(str(tmp_path), {})) == []


def complaints(environment: dict[str, str], settings: str = "") -> list[str]:
    return [problem.found for problem in deployment_problems(parse_settings(settings_text(settings), "f"), environment)]


PRICES = {"DOCML_PRICES": '{"ml.m5.xlarge": 0.2, "ml.g5.xlarge": 1.5}'}
COSTS = """
PREPARATION_INSTANCE_TYPE = ml.m5.xlarge
PREPARATION_MAX_RUNTIME_SECONDS = 3600
INFERENCE_INSTANCE_TYPE = ml.m5.xlarge
INFERENCE_MAX_RUNTIME_SECONDS = 3600
TRAINING_INSTANCE_TYPE = ml.g5.xlarge
TRAINING_MAX_RUNTIME_SECONDS = 7200
MODEL_NAMES = a, b
"""


def test_the_worst_cases_of_all_jobs_count_together() -> None:
    assert complaints(AWS | PRICES, COSTS + "MAX_COST_USD = 6.4") == []
    assert complaints(AWS | PRICES, COSTS + "MAX_COST_USD = 6.3") == [
        "a run that may cost 6.40 USD (preparation 0.20, training 6.00, inference 0.20)"
    ]
    assert complaints(AWS | PRICES, COSTS + "MAX_COST_USD = 6.3\nRUN_INFERENCE = false") == []
    sharded = COSTS + "MAX_COST_USD = 1\nRUN_TRAINING = false\nPREPARATION_INSTANCE_COUNT = 5"
    assert complaints(AWS | PRICES, sharded) == [
        "a run that may cost 1.40 USD (preparation 1.00, inference 0.20, merging of shards 0.20)"
    ]
    assert complaints(AWS, COSTS + "MAX_COST_USD = 0.01") == [], "no price is known"
    assert complaints(PRICES, COSTS + "MAX_COST_USD = 0.01") == [], "nothing costs anything on this machine"


def test_tuning_counts_all_trials() -> None:
    keys = COSTS + "RUN_TRAINING = false\nRUN_TUNING = true\nMAX_JOBS = 4\nMAX_COST_USD = 10"
    settings = parse_settings(settings_text(keys, tunable="epochs = 1 -> 3"), "f")
    (problem,) = deployment_problems(settings, AWS | PRICES)
    # 2 models x 4 trials x 2 hours
    assert problem.found == "a run that may cost 24.40 USD (preparation 0.20, tuning 24.00, inference 0.20)"


def test_a_complete_deployment() -> None:
    assert complaints({}) == []
    assert complaints(AWS) == []


NO_WAY_OUT = {"DOCML_SUBNETS": "subnet-1", "DOCML_SECURITY_GROUPS": "sg-1"}
TRACKER = {"WANDB_API_KEY": "secretsmanager:wandb#key"}


@pytest.mark.parametrize(
    ("changed", "settings", "complaint"),
    [
        ({"DOCML_ENV": "cloud"}, "", "DOCML_ENV = cloud"),
        ({"DOCML_STORE": ""}, "", "DOCML_STORE = ./storage on aws"),
        ({"DOCML_SAGEMAKER_ROLE_ARN": ""}, "", "no DOCML_SAGEMAKER_ROLE_ARN"),
        ({"DOCML_SAGEMAKER_ROLE_ARN": "docml"}, "", "DOCML_SAGEMAKER_ROLE_ARN = docml"),
        ({"DOCML_IMAGE": ""}, "", "neither DOCKER_IMAGE nor DOCML_IMAGE"),
        ({"AWS_REGION": ""}, "", "no AWS_REGION"),
        ({"DOCML_SUBNETS": "subnet-1"}, "", "only one of DOCML_SUBNETS and DOCML_SECURITY_GROUPS"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "", "AWS_ACCESS_KEY_ID alone"),
        ({"DOCML_PRICES": "{"}, "", "DOCML_PRICES = {"),
        ({"DOCML_PRICES": '{"ml.m5.xlarge": "1"}'}, "", 'DOCML_PRICES = {"ml.m5.xlarge": "1"}'),
        ({"DOCML_WORKER_PYTHON": "/no/such/python"}, "", "DOCML_WORKER_PYTHON = /no/such/python"),
        ({}, "WANDB_MODE = online", "WANDB_MODE = online without WANDB_API_KEY"),
        ({"WANDB_API_KEY": "0123"}, "WANDB_MODE = online", "WANDB_API_KEY as plain text on aws"),
        (
            NO_WAY_OUT | TRACKER,
            "WANDB_MODE = online",
            "WANDB_MODE = online with jobs in DOCML_SUBNETS, which cannot reach Weights & Biases",
        ),
        (NO_WAY_OUT | {"DOCML_SUBNETS_INTERNET": "yes"}, "", "DOCML_SUBNETS_INTERNET = yes"),
    ],
)
def test_what_a_deployment_lacks(changed: dict[str, str], settings: str, complaint: str) -> None:
    assert complaints({**AWS, **changed}, settings) == [complaint]


def test_an_experiments_own_image_is_enough() -> None:
    assert complaints({**AWS, "DOCML_IMAGE": ""}, "DOCKER_IMAGE = repository/image:tag") == []
    assert complaints({**AWS, "WANDB_API_KEY": "secretsmanager:wandb#key"}, "WANDB_MODE = online") == []
    assert complaints({"WANDB_API_KEY": "0123"}, "WANDB_MODE = online") == []
    for way_out in ({"DOCML_SUBNETS_INTERNET": "true"}, {"WANDB_BASE_URL": "https://wandb.internal"}):
        assert complaints({**AWS, **NO_WAY_OUT, **TRACKER, **way_out}, "WANDB_MODE = online") == []


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"DOCML_STORE": str(tmp_path / "store"), **more}


def test_a_right_folder_has_no_problems_and_nothing_is_written(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "experiments")
    assert validate(folder, environment(tmp_path)) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "EXP-1",
        "experiments",
        "settings.ini",
        "user_defined_funcs.py",
    ]


def test_mistakes_of_both_files_and_of_the_environment_come_together(tmp_path: Path) -> None:
    folder = write_experiment(
        tmp_path,
        settings=settings_text("SPLIT = 1, 2\nRUN_NUM = x"),
        functions=FUNCTIONS.replace("return model_name", "pass"),
    )
    files = [problem.place for problem in validate(folder, environment(tmp_path))]
    assert files == [f"{folder}/settings.ini:6", f"{folder}/settings.ini:7", f"{folder}/user_defined_funcs.py:14"]
    right = write_experiment(tmp_path)
    assert [problem.place for problem in validate(right, environment(tmp_path, DOCML_ENV="cloud"))] == [
        "the environment"
    ]


def test_on_aws_the_image_and_the_network_are_looked_at(tmp_path: Path) -> None:
    functions = FUNCTIONS.replace("import json", "import json\nimport scipy\n\nimport spacy")
    functions += "\n\nmodel = lambda hub: hub.from_pretrained('bert-base-uncased')\n"
    folder = write_experiment(tmp_path, functions=functions)
    assert validate(folder, environment(tmp_path)) == [], "jobs run on this machine"
    found = [problem.found for problem in validate(folder, AWS)]
    assert found == ["import spacy, which the jobs' image lacks"]
    (folder / "sagemaker.Dockerfile").write_text("ARG DOCML_BASE\nFROM ${DOCML_BASE}\nRUN pip install spacy==3.8.7\n")
    assert validate(folder, AWS) == []
    (problem,) = validate(folder, AWS | NO_WAY_OUT)
    assert problem.found == "hub.from_pretrained('bert-base-uncased'), a download"
    assert "HF_HUB_OFFLINE=1" in problem.remedy
    assert validate(folder, AWS | NO_WAY_OUT | {"DOCML_SUBNETS_INTERNET": "true"}) == []


def test_a_missing_file_does_not_hide_the_mistakes_of_the_other(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, settings=settings_text("SPLIT = 1, 2"), functions=None)
    places = [problem.place for problem in validate(folder, environment(tmp_path))]
    assert places == [f"{folder}/settings.ini:6", f"{folder}/user_defined_funcs.py"]
    folder = write_experiment(tmp_path, "EXP-2", functions="def (")
    (folder / "settings.ini").unlink()
    places = [problem.place for problem in validate(folder, environment(tmp_path))]
    assert places == [f"{folder}/settings.ini", f"{folder}/user_defined_funcs.py:1"]


def test_no_folder_and_a_bad_name(tmp_path: Path) -> None:
    (problem,) = validate(tmp_path / "EXP-9", environment(tmp_path))
    assert problem.remedy == "create it with: docml new EXP-9"
    (problem,) = validate(write_experiment(tmp_path, "EXP 9"), environment(tmp_path))
    assert problem.remedy == "rename the folder"


def test_files_that_nothing_makes(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, settings=settings_text("FILES_ON_RESEARCH = raw_text.json, words.json"))
    (problem,) = validate(folder, environment(tmp_path))
    assert problem.found == "no process_func, though FILES_ON_RESEARCH names words.json"
    made = f"{FUNCTIONS}\n\ndef process_func(artifact, directory):\n    (directory / 'words.json').touch()\n"
    write_experiment(tmp_path, settings=settings_text("FILES_ON_RESEARCH = raw_text.json, words.json"), functions=made)
    assert validate(folder, environment(tmp_path)) == []


def test_a_use_case_that_cannot_work_is_said_before_it_runs(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, settings=settings_text("USE_CASE = ./use_case.py"))
    (folder / "use_case.py").write_text("import nowhere\n\n\ndef combine(predictions):\n    return predictions\n")
    lacking, no_pages = validate(folder, environment(tmp_path))
    if "nowhere" not in lacking.found:
        lacking, no_pages = no_pages, lacking
    assert lacking.found.startswith("import nowhere, which ")
    assert lacking.place.endswith("use_case.py:1")
    assert no_pages.found.startswith("USE_CASE = ./use_case.py with MODEL_INPUT_FILES = ")
    assert "a pattern in MODEL_INPUT_FILES, such as page_*.png" in no_pages.expected
    (folder / "use_case.py").write_text("def labels(table):\n    return table\n")
    assert validate(folder, environment(tmp_path)) == []
    lacking, *_ = validate(folder, environment(tmp_path, DOCML_WORKER_PYTHON="no-python"))
    assert "no-python does not run" in lacking.found
