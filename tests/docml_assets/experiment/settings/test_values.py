import pytest
from pydantic import TypeAdapter, ValidationError

from docml_assets.experiment.settings.values import (
    FileNames,
    Flag,
    InstanceType,
    Labels,
    MetricDefinitions,
    ModelNames,
    Shares,
)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("Yes", True), ("on", True), ("0", False), ("FALSE", False)]
)
def test_flags(text: str, value: bool) -> None:
    assert TypeAdapter(Flag).validate_python(text) is value


def test_a_flag_is_nothing_else() -> None:
    with pytest.raises(ValidationError, match="neither true nor false"):
        TypeAdapter(Flag).validate_python("maybe")


def test_lists_are_separated_by_commas_and_lines() -> None:
    adapter = TypeAdapter(Labels)
    assert adapter.validate_python("a, b c,\nd,") == ("a", "b c", "d")
    assert adapter.validate_python("none") == ()
    assert adapter.validate_python("") == ()
    assert adapter.validate_python(["a"]) == ("a",)
    with pytest.raises(ValidationError, match="a more than once"):
        adapter.validate_python("a, b, a")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "x\x07", "a\u202eb"])
def test_unsafe_file_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(FileNames).validate_python(f"raw_text.json, {name}")


def test_model_names_have_no_underscore() -> None:
    assert TypeAdapter(ModelNames).validate_python("a-1.0, B") == ("a-1.0", "B")
    for wrong in ("a_b", "-a", "a b", "x" * 64, "a\n"):
        with pytest.raises(ValidationError):
            TypeAdapter(ModelNames).validate_python([wrong])


def test_shares_are_three() -> None:
    assert TypeAdapter(Shares).validate_python("0.8, 0.1, 0.1") == (0.8, 0.1, 0.1)
    with pytest.raises(ValidationError):
        TypeAdapter(Shares).validate_python("0.8, 0.2")


def test_instance_types() -> None:
    assert TypeAdapter(InstanceType).validate_python("ml.g5.12xlarge")
    assert TypeAdapter(InstanceType).validate_python("ml.trn1.2xlarge")
    with pytest.raises(ValidationError):
        TypeAdapter(InstanceType).validate_python("g5.xlarge")


def test_metric_definitions_in_both_forms() -> None:
    adapter = TypeAdapter(MetricDefinitions)
    assert adapter.validate_python('{"m": "m=(.*)"}') == (("m", "m=(.*)"),)
    assert adapter.validate_python('[{"Name": "m", "Regex": "m=(.*)"}]') == (("m", "m=(.*)"),)
    assert adapter.validate_python("none") == ()
    for wrong in ("{", '[{"Name": "m"}]', '{"m": 3}', "[1]", "3"):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
