import pytest

from docml_assets.experiment.settings.ini import looks_secret, parse_ini

SECTIONS = ("settings", "tunable")


def values(text: str) -> dict[str, str]:
    ini = parse_ini(text, "f.ini", SECTIONS)
    assert ini.problems == []
    return {entry.key: entry.value for _, entry in ini.all_entries()}


def complaints(text: str) -> list[str]:
    return [str(problem) for problem in parse_ini(text, "f.ini", SECTIONS).problems]


def test_values_keep_percent_hash_semicolon_and_equals() -> None:
    text = "[settings]\nQUERY = SELECT '%x%' ; # no comment = 1\nEMPTY =\n"
    assert values(text) == {"QUERY": "SELECT '%x%' ; # no comment = 1", "EMPTY": ""}


def test_indented_lines_go_on_and_comments_between_them_do_not_count() -> None:
    text = "[settings]\nQUERY = SELECT a,\n    b\n# comment\n  ; comment\n\tFROM t\nNEXT = 1\n"
    assert values(text) == {"QUERY": "SELECT a,\nb\nFROM t", "NEXT": "1"}


def test_a_value_may_begin_on_the_next_line_and_ends_with_a_blank_one() -> None:
    assert values("[settings]\nA =\n  1\n\nB = 2\n") == {"A": "1", "B": "2"}


def test_byte_order_mark_and_windows_line_ends() -> None:
    assert values("\ufeff[settings]\r\nA = 1\r\nB = 2\r\n") == {"A": "1", "B": "2"}


def test_lines_are_those_of_the_keys() -> None:
    ini = parse_ini("# first\n[settings]\n\nA = 1\n  2\nB = 3\n", "f.ini", SECTIONS)
    assert (ini.line("settings", "A"), ini.line("settings", "B")) == (4, 6)
    assert ini.line("settings", "missing") == 2
    assert ini.line("tunable", "missing") == 1


def test_repeated_keys_and_sections_are_reported_with_the_first_line() -> None:
    found = complaints("[settings]\nA = 1\nA = 2\n[settings]\nB = 1\n")
    assert found == [
        "f.ini:3: found A again (first on line 2); expected each key once; remove one of the two",
        "f.ini:4: found [settings] again (first on line 1); expected each section once; join the two sections",
    ]


def test_mistakes_of_form_are_all_reported() -> None:
    found = complaints("A = 1\n[setings]\nB = 1\n[tunable\n[settings]\nnonsense\n= 3\n")
    assert [line.split(":")[1] for line in found] == ["1", "2", "4", "6", "7"]
    assert "did you mean [settings]?" in found[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "postgresql://me:word@host/db"),
        ("x", "before AKIA" + "A" * 16),
        ("x", "hf_" + "a" * 34),
        ("x", "-----BEGIN RSA PRIVATE KEY-----"),
        ("WANDB_API_KEY", "something"),
        ("db_password", "something"),
    ],
)
def test_secrets(key: str, value: str) -> None:
    assert looks_secret(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "s3://bucket/prefix"),
        ("url", "https://host:8080/path@2"),
        ("max_tokens", "512"),
        ("pad_token", "<pad>"),
        ("revision", "0123456789abcdef0123456789abcdef01234567"),
        ("api_key", "secretsmanager:name#key"),
    ],
)
def test_no_secrets(key: str, value: str) -> None:
    assert looks_secret(key, value) is None
