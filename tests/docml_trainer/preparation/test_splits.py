"""Splits: shares kept by label, groups whole, earlier assignments untouched, order without influence."""

import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docml_contract.jobs import PrepareTask
from docml_contract.names import SPLITS
from docml_trainer.preparation.near_duplicates import compute_signatures
from docml_trainer.preparation.splits import assign as assign_compared
from docml_trainer.preparation.splits import assign_splits, blocks_of

SHARES = (0.8, 0.1, 0.1)


def assign(
    guids: list[str],
    labels: list[str] | None = None,
    groups: list[str | None] | None = None,
    alike: list[str | None] | None = None,
    previous: dict[str, str] | None = None,
    shares: tuple[float, ...] = SHARES,
    seed: int = 13,
) -> dict[str, str | None]:
    nothing: list[str | None] = [None] * len(guids)
    found = assign_splits(
        guids,
        labels or ["a"] * len(guids),
        groups or nothing,
        alike or nothing,
        previous=previous or {},
        shares=shares,
        seed=seed,
    )
    return dict(zip(guids, found, strict=True))


def test_every_label_has_its_shares() -> None:
    guids = [f"d{index}" for index in range(1_000)]
    labels = ["big" if index % 10 else "small" for index in range(1_000)]
    splits = assign(guids, labels)
    for label, size in (("big", 900), ("small", 100)):
        counts = Counter(splits[guid] for guid, of in zip(guids, labels, strict=True) if of == label)
        assert [counts[split] for split in SPLITS] == [size * 8 // 10, size // 10, size // 10]


def test_a_label_with_three_documents_appears_in_every_split() -> None:
    assert Counter(assign(["x", "y", "z"]).values()) == {"train": 1, "valid": 1, "test": 1}


def test_a_share_of_zero_gets_nothing() -> None:
    assert set(assign([f"d{i}" for i in range(10)], shares=(0.8, 0.2, 0.0)).values()) == {"train", "valid"}


def test_another_seed_is_another_assignment() -> None:
    guids = [f"d{index}" for index in range(100)]
    assert assign(guids) == assign(guids)
    assert assign(guids) != assign(guids, seed=14)


def test_with_documents_added_nobody_moves_and_the_shares_are_filled() -> None:
    first = assign([f"d{index}" for index in range(100)])
    later = assign([f"d{index}" for index in range(150)], previous={guid: str(split) for guid, split in first.items()})
    assert {guid: later[guid] for guid in first} == first
    assert Counter(later.values()) == {"train": 120, "valid": 15, "test": 15}


def test_a_new_document_joins_its_group() -> None:
    splits = assign(["old", "new", "twin"], groups=["g", "g", None], alike=[None, "n", "n"], previous={"old": "test"})
    assert splits == {"old": "test", "new": "test", "twin": "test"}


def test_a_new_document_between_groups_in_different_splits_is_left_out_and_only_that_one() -> None:
    splits = assign(
        ["a", "b", "bridge", "more-a", "beyond"],
        groups=["A", "B", "A", "A", None],
        alike=[None, "x", "x", None, None],
        previous={"a": "train", "b": "test"},
    )
    assert splits["bridge"] is None
    assert splits["more-a"] == "train"
    assert splits["beyond"] in SPLITS


def test_what_only_a_left_out_document_tied_to_a_conflict_is_free() -> None:
    """`bridge` has a SPLIT_BY group in train and a near-duplicate in test; nothing else is left out."""
    guids = ["a", "b", "bridge", "follower"]
    splits = assign(
        guids,
        groups=["A", None, "A", "A"],
        alike=[None, "n", "n", None],
        previous={"a": "train", "b": "test"},
    )
    assert (splits["bridge"], splits["follower"]) == (None, "train")


def test_earlier_documents_whose_groups_came_together_stay_where_they_are() -> None:
    splits = assign(["a", "b"], alike=["n", "n"], previous={"a": "train", "b": "test"})
    assert splits == {"a": "train", "b": "test"}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_group_straddles_splits_and_order_does_not_matter(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    guids = [f"d{index}" for index in range(count)]
    some_group = st.one_of(st.none(), st.sampled_from("ABCDEFG"))
    labels = data.draw(st.lists(st.sampled_from("xyz"), min_size=count, max_size=count))
    groups = data.draw(st.lists(some_group, min_size=count, max_size=count))
    alike = data.draw(st.lists(some_group, min_size=count, max_size=count))
    known = data.draw(st.lists(st.one_of(st.none(), st.sampled_from(SPLITS)), min_size=count, max_size=count))
    earlier = {guid: split for guid, split in zip(guids, known, strict=True) if split}

    splits = assign(guids, labels, groups, alike, earlier)

    assert all(splits[guid] == split for guid, split in earlier.items())
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for guid, group, twin in zip(guids, groups, alike, strict=True):
        for kind, name in (("group", group), ("alike", twin)):
            if name:
                members[kind, name].append(guid)
    for of_group in members.values():
        before = {earlier[guid] for guid in of_group if guid in earlier}
        after = {splits[guid] for guid in of_group if splits[guid]}
        assert len(after) <= max(1, len(before))
    if not earlier:
        assert None not in splits.values()

    order = list(range(count))
    random.Random(1).shuffle(order)
    again = assign(*([column[index] for index in order] for column in (guids, labels, groups, alike)), earlier)
    assert again == splits


@pytest.mark.parametrize("sizes", [[50, 30, 10, 5, 5], [90, 10], [100]])
def test_large_groups_still_leave_splits_near_their_shares(sizes: list[int]) -> None:
    groups: list[str | None] = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    guids = [f"d{index}" for index in range(len(groups))]
    splits = assign(guids, groups=groups)
    assert None not in splits.values()
    by_group = defaultdict(set)
    for guid, group in zip(guids, groups, strict=True):
        by_group[group].add(splits[guid])
    assert all(len(found) == 1 for found in by_group.values())
    assert "train" in splits.values()


def test_a_document_left_out_ties_nobody_together_any_more() -> None:
    between = np.random.default_rng(3).integers(0, 30_000, 600)
    left, right = between.copy(), between.copy()
    left[10:200:12], right[300:490:12] = 1, 2
    found = compute_signatures([left, between, right])
    task = PrepareTask(
        model_names=("m",), own_hyperparameters={}, model_input_files=("f",), near_duplicate_threshold=0.8
    )
    guids, nothing = ["left", "between", "right"], [None, None, None]
    together = assign_compared(task, guids, ["a"] * 3, nothing, found, {})
    assert (len(set(together.splits)), together.near_duplicate_groups) == (1, ["between"] * 3)
    apart = assign_compared(task, guids, ["a"] * 3, nothing, found, {"left": "train", "right": "test"})
    assert (apart.splits, apart.near_duplicate_groups) == (["train", None, "test"], nothing)


def pages(count: int, labels: int = 2) -> tuple[list[str], list[str]]:
    """GUIDs of the pages of `count` artifacts with 1 to 12 pages, and their labels."""
    found = [
        (f"a{index}/page_{page:02d}", f"label {index % labels}")
        for index in range(count)
        for page in range(index % 12 + 1)
    ]
    return [guid for guid, _ in found], [label for _, label in found]


def test_units_of_an_artifact_go_together_and_shares_count_artifacts() -> None:
    guids, labels = pages(200)
    nothing: list[str | None] = [None] * len(guids)
    found = assign_compared(
        PrepareTask(model_names=("m",), own_hyperparameters={}, model_input_files=("p_*",)),
        guids,
        labels,
        nothing,
        None,
        {},
    )
    table = found.to_table()
    assert table.column_names[:2] == ["artifact_guid", "unit"]
    assert table["unit"].to_pylist()[0] == "page_00"
    split_of: dict[str, set[str]] = defaultdict(set)
    for row in table.to_pylist():
        split_of[row["artifact_guid"]].add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())
    assert Counter(split for splits in split_of.values() for split in splits) == {"train": 160, "valid": 20, "test": 20}
    blocks = blocks_of(found)
    assert sorted(map(len, blocks)) == sorted(index % 12 + 1 for index in range(200))
    before = dict.fromkeys(split_of, "valid")
    again = assign_compared(
        PrepareTask(model_names=("m",), own_hyperparameters={}, model_input_files=("p_*",)),
        guids,
        labels,
        nothing,
        None,
        before,
    )
    assert set(again.splits) == {"valid"}, "what an earlier run decided for an artifact holds for its units"


def test_near_duplicates_are_artifacts_and_not_their_blank_pages() -> None:
    def tokens(seed: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        return np.random.default_rng(seed).integers(0, 1_000, 200)

    guids = ["a/1", "a/2", "b/1", "b/2", "c/1", "c/2"]
    texts = [
        tokens(1),
        tokens(0),
        tokens(2),
        tokens(0),
        tokens(0),
        tokens(1),
    ]  # one page is in all of them; c is a, otherwise ordered
    nothing: list[str | None] = [None] * len(guids)
    task = PrepareTask(model_names=("m",), own_hyperparameters={}, model_input_files=("p_*",))
    found = assign_compared(task, guids, ["x"] * 6, nothing, compute_signatures(texts), {})
    assert found.near_duplicate_groups == ["a", "a", None, None, "a", "a"]
