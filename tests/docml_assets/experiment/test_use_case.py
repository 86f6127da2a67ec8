import re
from pathlib import Path

import pytest

from docml_assets.errors import SettingsError
from docml_assets.experiment.folder import ExperimentFolder
from docml_assets.experiment.use_case import UseCase, find_use_case
from docml_assets.runs.claims import ClaimSwapped, changed_keys, claim_run, write_snapshot
from resources.store import Store
from tests.docml_assets.experiment.experiments import settings_text, write_experiment

LOWER = "def labels(table):\n    return table.assign(label=table.label.str.lower())\n"


def experiment(root: Path, name: str, **files: str) -> ExperimentFolder:
    """An experiment folder with that USE_CASE and further files, `__` for the dot of their names."""
    folder = write_experiment(root, settings=settings_text(f"USE_CASE = {name}"))
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)
    return ExperimentFolder.load(folder)


def install(site: Path, package: str, text: str, name: str = "cleaned") -> None:
    """A distribution with a use case, as pip would leave it."""
    module = f"{package}_package"
    (site / module).mkdir(parents=True)
    (site / module / "__init__.py").write_text("raise RuntimeError('the orchestrator imports no use case')")
    (site / module / "cases.py").write_text(text)
    info = site / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[docml.use_cases]\n{name} = {module}.cases\n")


def said(name: str, folder: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        find_use_case(name, folder, ("settings.ini", 7))
    return str(caught.value)


def test_none_is_classification(tmp_path: Path) -> None:
    assert find_use_case("classification", tmp_path, ("settings.ini", 1)) is None


def test_a_plug_in_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "acme", LOWER)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_use_case("cleaned", tmp_path, ("settings.ini", 1))
    assert found == UseCase(name="cleaned", text=LOWER, package="acme", version="1.2")
    assert found is not None
    assert re.fullmatch(r"cleaned of acme 1\.2 \(sha256 [0-9a-f]{16}\)", found.describe())


def test_two_packages_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("acme", "other"):
        install(tmp_path, package, LOWER)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "settings.ini:7" in said("cleaned", tmp_path)
    assert "cleaned, which acme and other both have" in said("cleaned", tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "acme", LOWER)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = said("claened", tmp_path)
    assert "./use_case.py, classification, cleaned, mapped, pages" in text
    assert "did you mean cleaned?" in text


@pytest.mark.parametrize(
    ("name", "file", "text", "expected"),
    [
        ("./use_case.py", None, "", "use_case.py: No such file or directory"),
        ("./use_case.py", "use_case.py", "labels = 1 +", "what is not Python"),
        ("./use_case.py", "use_case.py", "def label(table): return table", "no labels"),
        ("./use_case.py", "use_case.py", "def labels(rows): return rows", "def labels(rows)"),
        ("./use_case.py", "use_case.py", "def labels(table): pass", "labels with an empty body"),
        ("./use_case.py", "use_case.py", "def labels(table): table.pop('x')", "labels that returns nothing"),
        ("./use_case.py", "use_case.py", "def files(names): return names", "def files(artifact, names)"),
        ("./use_case.py", "use_case.py", "def combine(table): return table", "def combine(predictions)"),
        ("./use_case.py", "use_case.py", f"x = {'-' * 10_000}1", "nested more than"),
        ("./use_case.py", "use_case.py", "x" * 1_000_001, "use_case.py: more than 1,000,000 characters"),
        ("mapped", None, "", "labels.csv: No such file or directory"),
        ("mapped", "labels.csv", "", "label,becomes"),
        ("mapped", "labels.csv", "label,becomes\na,b\na,c\n", "labels.csv:3"),
        ("mapped", "labels.csv", "label,becomes\n\na\n", "labels.csv:3: found one text alone"),
        ("mapped", "labels.csv", f"label,becomes\n{'a' * 200_000},b\n", "labels.csv:2: found what is not CSV"),
    ],
)
def test_mistakes_are_found_in_the_text(tmp_path: Path, name: str, file: str | None, text: str, expected: str) -> None:
    if file:
        (tmp_path / file).write_text(text)
    assert expected in said(name, tmp_path)


def test_it_is_frozen_with_the_claim(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), environment={})
    folder = experiment(tmp_path, "./use_case.py", use_case__py=LOWER)
    claim = claim_run(store, folder, 1, trigger={}, request_id="1")
    assert claim.use_case == UseCase(name="./use_case.py", text=LOWER)
    assert changed_keys(claim, folder) == []
    assert changed_keys(claim, experiment(tmp_path, "./use_case.py", use_case__py=f"# a comment\n{LOWER}")) == []
    other = experiment(tmp_path, "./use_case.py", use_case__py=LOWER.replace("lower", "upper"))
    assert changed_keys(claim, other) == ["the use case ./use_case.py"]
    first, second = (
        write_snapshot(store, found) for found in (claim, claim_run(store, other, 2, trigger={}, request_id="2"))
    )
    assert first.data_version != second.data_version
    assert store.get("EXP-1/run_1/experiment/use_case.py").decode() == LOWER
    claim.check_frozen(first, claim.digest)
    assert claim.use_case is not None
    for swapped in (claim.use_case.model_copy(update={"text": "other"}), None):
        with pytest.raises(ClaimSwapped, match=r"manifest: use_case.py"):
            claim.model_copy(update={"use_case": swapped}).check_frozen(first, None)
        with pytest.raises(ClaimSwapped, match="event log"):
            claim.model_copy(update={"use_case": swapped}).check_frozen(None, claim.digest)


def test_only_what_labels_uses_decides_what_is_reconciled() -> None:
    def of(text: str, name: str = "./use_case.py") -> str:
        return UseCase(name=name, text=text).reconciling_digest

    assert of(LOWER) == of(f"# a comment\n{LOWER}\nOTHER = 1\n")
    assert of(LOWER) != of(LOWER.replace("lower", "upper"))
    assert of("label,becomes\na,b\nc,d\n", "mapped") == of("label,becomes\nc,d\na,b\n", "mapped")
    assert of("label,becomes\n\na,b\nc,d\n\n", "mapped") == of("label,becomes\nc,d\na,b\n", "mapped"), (
        "empty lines mean nothing"
    )


def test_units_and_files_decide_what_is_reconciled_and_combine_what_is_answered() -> None:
    def of(text: str, name: str = "./use_case.py") -> UseCase:
        return UseCase(name=name, text=text)

    files = "def files(artifact, names):\n    return names[:1]\n"
    combine = "def combine(predictions):\n    return predictions\n"
    plain, chosen, combined = of(LOWER), of(LOWER + files), of(LOWER + combine)
    assert (plain.functions, plain.makes_units, plain.combining_digest) == (("labels",), False, None)
    assert chosen.functions == ("files", "labels")
    assert combined.makes_units
    assert len({case.reconciling_digest for case in (plain, chosen, combined)}) == 3
    other = of(LOWER + combine.replace("return predictions", "return predictions.head()"))
    assert other.reconciling_digest == combined.reconciling_digest, "the data are the same"
    assert other.combining_digest != combined.combining_digest
    pages = of("", "pages")
    assert (pages.makes_units, pages.combining_digest, pages.files) == (True, None, {})


def test_pages_is_frozen_without_a_file(tmp_path: Path) -> None:
    folder = experiment(tmp_path, "pages")
    store = Store.open(str(tmp_path / "store"), environment={})
    claim = claim_run(store, folder, 1, trigger={}, request_id="1")
    assert claim.use_case == UseCase(name="pages", text="")
    claim.check_frozen(write_snapshot(store, claim), claim.digest)
    assert changed_keys(claim, folder) == []
