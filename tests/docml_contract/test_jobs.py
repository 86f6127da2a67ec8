from docml_contract.jobs import Compute, JobSpec, PrepareTask


def spec(**changes: object) -> JobSpec:
    task = PrepareTask(
        model_names=("tiny",),
        own_hyperparameters={},
        model_input_files=("raw_text.json",),
        **changes,  # type: ignore[arg-type]
    )
    return JobSpec(
        kind="processing",
        experiment="EXP-1",
        run=1,
        step="preparation",
        model=None,
        task=task,
        channels=(),
        compute=Compute(instance_type="local"),
    )


def test_a_spec_without_optional_files_keeps_the_hash_it_had_before_there_were_any() -> None:
    assert spec().spec_hash == "21e1b41f6a8ba5d22663e20c904c87da2691a117d9d8a8944e05e6806354c607"


def test_optional_files_decide_the_result() -> None:
    assert spec(optional_files=("raw_text.json",)).spec_hash != spec().spec_hash


def test_values_of_one_model_decide_the_result() -> None:
    assert spec(model_hyperparameters={"tiny": {"max_length": 8}}).spec_hash != spec().spec_hash
