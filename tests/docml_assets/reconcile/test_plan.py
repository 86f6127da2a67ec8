import subprocess
import sys

import polars as pl
import pyarrow as pa

from docml_assets.reconcile.findings import ReconciliationFindings
from docml_assets.reconcile.plan import (
    KEY,
    Recipe,
    ReconciliationPlan,
    artifact_files,
    join,
    make_plan,
    production_files,
    to_copy,
    to_process,
)
from resources.store import TABLE_SCHEMA

FILES = ("a.json", "b.png")


def listing(*keys: str, etag: str = "e") -> pa.Table:
    return pa.table([list(keys), [1] * len(keys), [f"{etag}-{key}" for key in keys]], schema=TABLE_SCHEMA)


def rows(*guids: str) -> pl.DataFrame:
    return pl.DataFrame({"artifact_guid": guids, "label": ["x"] * len(guids), "file_hash": list(guids)})


def plan(
    keys: tuple[str, ...], recipe: Recipe, etag: str = "e", guids: tuple[str, ...] = ("g1", "g2")
) -> ReconciliationPlan:
    files = production_files(listing(*keys, etag=etag), recipe.files_from_prod, ReconciliationFindings())
    return make_plan(*join(rows(*sorted(guids)), files, recipe, ReconciliationFindings()), recipe)


KEYS = ("g1/a.json", "g1/b.png", "g2/a.json", "g2/b.png")
RECIPE = Recipe(FILES, FILES, None, None)


def versions(of: ReconciliationPlan) -> dict[str, str]:
    return dict(of.versions.iter_rows())


def test_wanted_files_are_found_and_unsafe_keys_counted() -> None:
    keys = [
        "g1/a.json",
        "g1/c.txt",
        "g1/deep/a.json",
        "a.json",
        "g\u202e/a.json",
        "../a.json",
        "/a.json",
        "ü g/a.json",
        "g2/xa.json",
    ]
    findings = ReconciliationFindings()
    files = production_files(listing(*keys), FILES, findings)
    assert list(files.select("artifact_guid", "file").iter_rows()) == [("g1", "a.json"), ("ü g", "a.json")]
    assert findings.funnel == {"production files": 9, "production files refused": 3, "production files elsewhere": 2}
    assert findings.refused.num_rows == 3


def test_join() -> None:
    files = production_files(listing("g1/a.json", "g3/a.json", "g3/b.png"), FILES, ReconciliationFindings())
    findings = ReconciliationFindings()
    joined, kept = join(rows("g1", "g2"), files, RECIPE, findings)
    assert joined["artifact_guid"].to_list() == ["g1"]
    assert list(kept.select("artifact_guid", "file").iter_rows()) == [("g1", "a.json")]
    assert findings.funnel == {
        "labels without files": 1,
        "artifacts without labels": 1,
        "joined": 1,
        "duplicates": 0,
        "deduplicated": 1,
    }
    assert findings.labels_without_files["artifact_guid"].to_pylist() == ["g2"]
    assert findings.files_without_labels["artifact_guid"].to_pylist() == ["g3"]


def test_duplicates_are_dropped_after_the_join() -> None:
    """The one with files stays, even if another GUID is smaller."""
    labelled = pl.DataFrame({"artifact_guid": ["a", "b"], "label": ["x", "x"], "file_hash": ["same", "same"]})
    files = production_files(listing("b/a.json"), FILES, ReconciliationFindings())
    joined, _ = join(labelled, files, RECIPE, ReconciliationFindings())
    assert joined["artifact_guid"].to_list() == ["b"]


def test_keys_and_versions() -> None:
    made = plan(KEYS, RECIPE)
    version = versions(made)
    assert all(len(v) == 16 for v in version.values())
    assert version["g1"] != version["g2"]
    assert made.files.row(0, named=True) == {
        "artifact_guid": "g1",
        "file": "a.json",
        "size": 1,
        "source_etag": "e-g1/a.json",
        "version": version["g1"],
    }
    assert versions(plan(KEYS[::-1], RECIPE, guids=("g2", "g1"))) == version, "order does not matter"


def test_what_changes_a_version() -> None:
    seen = [
        versions(plan(KEYS, RECIPE)),
        versions(plan(KEYS, RECIPE, etag="changed")),
        versions(plan(KEYS, Recipe(FILES, FILES, "digest", None))),
        versions(plan(KEYS, Recipe(FILES, FILES, "other digest", None))),
        versions(plan(KEYS, Recipe(FILES, FILES, None, 1))),
        versions(plan(KEYS, Recipe(FILES, FILES, None, 2))),
        versions(plan(KEYS, Recipe(FILES[:1], FILES[:1], None, None))),
    ]
    assert len({v["g1"] for v in seen}) == len(seen)


def test_artifacts_that_lack_a_file_are_set_apart() -> None:
    made = plan(KEYS[:3], RECIPE)
    assert made.artifacts["artifact_guid"].to_list() == ["g1"]
    assert made.incomplete.rows() == [("g2", "b.png")]
    assert set(made.files["artifact_guid"]) == {"g1"}


def existing(made: ReconciliationPlan, *more: str, size: int = 1) -> pa.Table:
    keys = sorted([*made.files.select(KEY).to_series(), *more])
    return pa.table([keys, [size] * len(keys), [None] * len(keys)], schema=TABLE_SCHEMA)


def test_what_is_to_copy() -> None:
    made = plan(KEYS, RECIPE)
    assert to_copy(made, TABLE_SCHEMA.empty_table()).height == 4
    assert to_copy(made, existing(made)).height == 0
    assert to_copy(made, existing(made).slice(1)).select("artifact_guid", "file").rows() == [("g1", "a.json")]
    assert to_copy(made, existing(made, size=2)).height == 4, "of another size"


def test_what_is_to_process() -> None:
    recipe = Recipe(FILES, (*FILES, "made.txt"), "digest", None)
    made = plan(KEYS, recipe)
    folder = {guid: f"{guid}/{version}" for guid, version in versions(made).items()}

    def pending(*more: str) -> list[str]:
        table = existing(made, *more)
        return to_process(made, artifact_files(made, table), recipe)["artifact_guid"].to_list()

    done1 = [f"{folder['g1']}/made.txt", f"{folder['g1']}/extra.bin", f"{folder['g1']}/.processed-2"]
    assert pending() == ["g1", "g2"]
    assert pending(*done1) == ["g2"]
    assert pending(*done1[:2]) == ["g1", "g2"], "without the mark"
    assert pending(done1[0], done1[2]) == ["g1", "g2"], "with a file gone"
    assert pending(done1[1], done1[2]) == ["g1", "g2"], "with a required file gone"
    assert pending("g1/otherversion/.processed-0", *done1) == ["g2"]
    without = Recipe(FILES, FILES, None, None)
    assert to_process(made, artifact_files(made, existing(made)), without).is_empty()


_PLAN = """
import re, sys
from pathlib import Path
from tests.docml_assets.reconcile.test_plan import FILES, RECIPE, plan

guids = tuple(f"document-{number:08d}" for number in range(int(sys.argv[1])))
made = plan(tuple(f"{guid}/{file}" for guid in guids for file in FILES), RECIPE, guids=guids)
assert made.files.height == 2 * len(guids)
# Not ru_maxrss, which begins with what the process that started this one had.
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def memory_of_a_plan(artifacts: int) -> int:
    """kB that a process takes at most for the plan of so many artifacts of two files."""
    command = [sys.executable, "-c", _PLAN, str(artifacts)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_of_a_plan_grows_with_its_artifacts_and_not_faster() -> None:
    small, middle, large = map(memory_of_a_plan, (50_000, 150_000, 350_000))
    assert (large - middle) / 200_000 < 1.5 * (middle - small) / 100_000
