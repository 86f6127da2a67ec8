"""Which split every document goes to.

Artifacts that belong together (an equal SPLIT_BY value, or near-duplicates) form a block, and a block never straddles splits. Earlier
assignments are kept; new blocks fill the shares, label by label. A new document that would join blocks which earlier runs put into
different splits is left out. The result depends on the set of documents only, not on their order.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from docml_contract.jobs import PrepareTask
from docml_contract.names import SPLITS
from docml_contract.units import by_artifact, most_frequent, split_guid
from docml_trainer.preparation.documents import order_key
from docml_trainer.preparation.near_duplicates import name_groups

Group = tuple[str, str]  # kind and name


@dataclass(frozen=True)
class SplitAssignment:
    """The encoded documents, row by row: what they belong to, and the split that each goes to (None: left out)."""

    guids: list[str]
    labels: list[str]
    groups: list[str | None]  # the SPLIT_BY value
    near_duplicate_groups: list[str | None]
    splits: list[str | None]

    def to_table(self) -> pa.Table:
        """splits.parquet: the documents that have a split, by GUID; `unit` where they are parts of artifacts."""
        columns = ["artifact_guid", "label", "split", "group", "near_duplicate_group"]
        found = zip(self.guids, self.labels, self.splits, self.groups, self.near_duplicate_groups, strict=True)
        rows: list[tuple[str | None, ...]] = sorted(row for row in found if row[2])
        if any(split_guid(guid)[1] is not None for guid in self.guids):
            columns.insert(1, "unit")
            rows = [(*split_guid(str(row[0])), *row[1:]) for row in rows]
        return pa.table(
            {column: pa.array([row[index] for row in rows], pa.string()) for index, column in enumerate(columns)}
        )


def assign(
    task: PrepareTask,
    guids: list[str],
    labels: list[str],
    groups: list[str | None],
    signatures: np.ndarray[Any, Any] | None,
    previous: Mapping[str, str],
) -> SplitAssignment:
    """Each document's split and its group of near-duplicates. Units of one artifact go together, and count as one document.

    signatures: uint32[documents, 128], or None where documents are not compared. previous: split by artifact, from earlier runs.
    """
    if all(split_guid(guid)[1] is None for guid in guids):
        return _assign_artifacts(task, guids, labels, groups, signatures, previous)
    rows_of = by_artifact(guids)
    whole = _assign_artifacts(
        task,
        list(rows_of),
        [most_frequent([labels[row] for row in rows]) for rows in rows_of.values()],
        [groups[rows[0]] for rows in rows_of.values()],
        # The signature of the union: each number is the least hash of a set of shingles.
        None if signatures is None else np.array([signatures[rows].min(axis=0) for rows in rows_of.values()]),
        previous,
    )
    artifact_of_row = {row: number for number, rows in enumerate(rows_of.values()) for row in rows}
    numbers = [artifact_of_row[row] for row in range(len(guids))]
    return SplitAssignment(
        guids,
        labels,
        groups,
        [whole.near_duplicate_groups[number] for number in numbers],
        [whole.splits[number] for number in numbers],
    )


def _assign_artifacts(
    task: PrepareTask,
    guids: list[str],
    labels: list[str],
    groups: list[str | None],
    signatures: np.ndarray[Any, Any] | None,
    previous: Mapping[str, str],
) -> SplitAssignment:
    """As `assign`. A document left out ties nobody together any more, so the groups that are reported are those of the others."""

    def near_duplicate_groups(rows: list[int]) -> list[str | None]:
        if signatures is None:
            return [None] * len(rows)
        return name_groups([guids[row] for row in rows], signatures[rows], task.near_duplicate_threshold)

    everyone = list(range(len(guids)))
    alike = near_duplicate_groups(everyone)
    splits = assign_splits(guids, labels, groups, alike, previous=previous, shares=task.split, seed=task.split_seed)
    kept = [row for row in everyone if splits[row]]
    if len(kept) < len(everyone):
        alike = [None] * len(everyone)
        for row, group in zip(kept, near_duplicate_groups(kept), strict=True):
            alike[row] = group
    return SplitAssignment(guids, labels, groups, alike, splits)


def assign_splits(
    guids: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str | None],
    near_duplicate_groups: Sequence[str | None],
    *,
    previous: Mapping[str, str],
    shares: Sequence[float],
    seed: int,
) -> list[str | None]:
    """A split for every document, or None for those left out. `previous`: split by GUID, from an earlier run."""
    memberships = _memberships(groups, near_duplicate_groups)
    splits = [previous.get(guid) for guid in guids]
    keys = [order_key(guid, str(seed)) for guid in guids]
    new_blocks: list[list[int]] = []
    for block in _blocks(memberships):
        known = {split for index in block if (split := splits[index])}
        if not known:
            new_blocks.append(block)
        elif len(known) == 1:
            (only,) = known
            for index in block:
                splits[index] = only
        else:
            new_blocks += _join_where_clear(block, memberships, splits, keys)
    _fill(new_blocks, labels, splits, keys, shares)
    return splits


def blocks_of(assignment: SplitAssignment) -> list[list[int]]:
    """Rows of the documents that belong together, directly or through others; one that belongs to none is a block of its own."""
    memberships = _memberships(assignment.groups, assignment.near_duplicate_groups)
    of_artifacts = [split_guid(guid) for guid in assignment.guids]
    parts = [(("artifact", artifact),) if unit is not None else () for artifact, unit in of_artifacts]
    return _blocks([(*others, *part) for others, part in zip(memberships, parts, strict=True)])


def deal_folds(blocks: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], guids: Sequence[str], most: int) -> Any:
    """int64[documents]: each document's fold, of at most `most`, for a cross-validation.

    blocks: int64[documents], equal where documents belong together. Blocks are dealt out label by label, so that every fold has about every
    label's share.
    """
    members: dict[int, list[int]] = {}
    for place, block in enumerate(blocks.tolist()):
        members.setdefault(block, []).append(place)

    def order(block: int) -> tuple[int, bytes]:
        places = members[block]
        return int(np.bincount(labels[places]).argmax()), min(order_key(guids[place]) for place in places)

    folds = np.zeros(len(guids), dtype=np.int64)
    number = min(most, len(members))
    for position, block in enumerate(sorted(members, key=order)):
        folds[members[block]] = position % number
    return folds


def _memberships(groups: Sequence[str | None], near_duplicate_groups: Sequence[str | None]) -> list[tuple[Group, ...]]:
    """The groups of either kind that each document is in."""
    kinds = ("group", "near-duplicate")
    return [
        tuple((kind, name) for kind, name in zip(kinds, pair, strict=True) if name is not None)
        for pair in zip(groups, near_duplicate_groups, strict=True)
    ]


def _blocks(memberships: Sequence[tuple[Group, ...]]) -> list[list[int]]:
    """Connected components of documents that share a group of either kind."""
    parent: dict[Group, Group] = {}

    def root(group: Group) -> Group:
        while parent.setdefault(group, group) != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for member in memberships:
        for other in member[1:]:
            parent[root(other)] = root(member[0])
    blocks: dict[Group, list[int]] = defaultdict(list)
    alone = []
    for index, member in enumerate(memberships):
        if member:
            blocks[root(member[0])].append(index)
        else:
            alone.append([index])
    return [*blocks.values(), *alone]


def _join_where_clear(
    block: Sequence[int], memberships: Sequence[tuple[Group, ...]], splits: list[str | None], keys: Sequence[bytes]
) -> list[list[int]]:
    """In a block whose earlier documents lie in several splits: a new document follows its own groups where they agree.

    One that has groups in different splits stays out. Documents are taken in hash order, each as soon as a group of its own
    has a split. What only a document left out had tied to the block comes back as new blocks.
    """
    of_group: dict[Group, set[str]] = defaultdict(set)
    members: dict[Group, list[int]] = defaultdict(list)
    for index in block:
        for group in memberships[index]:
            members[group].append(index)
            if split := splits[index]:
                of_group[group].add(split)
    waiting = {index for index in block if splits[index] is None}
    ready = [(keys[index], index) for group in of_group for index in members[group] if index in waiting]
    heapq.heapify(ready)
    while ready:
        _, index = heapq.heappop(ready)
        if index not in waiting:
            continue
        waiting.discard(index)
        touched = set().union(*(of_group[group] for group in memberships[index]))
        if len(touched) == 1:
            (splits[index],) = touched
            for group in memberships[index]:
                if not of_group[group]:
                    of_group[group] |= touched
                    for other in members[group]:
                        heapq.heappush(ready, (keys[other], other))
    untouched = sorted(waiting)
    return [[untouched[index] for index in rest] for rest in _blocks([memberships[index] for index in untouched])]


def _fill(
    blocks: Iterable[list[int]],
    labels: Sequence[str],
    splits: list[str | None],
    keys: Sequence[bytes],
    shares: Sequence[float],
) -> None:
    """Put new blocks where their labels lack documents most: large blocks first, then in seeded hash order."""
    blocks = sorted(blocks, key=lambda block: (-len(block), min(map(keys.__getitem__, block))))
    missing = _targets(blocks, labels, splits, shares)
    open_splits = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    for block in blocks:
        counts = Counter(map(labels.__getitem__, block))
        lacking = [(count, missing[label]) for label, count in counts.items()]
        gains = [sum(count * lacks[split] for count, lacks in lacking) for split in open_splits]
        best = open_splits[gains.index(max(gains))]  # the first of equals: train before valid before test
        for index in block:
            splits[index] = best
        for count, lacks in lacking:
            lacks[best] -= count


def _targets(
    blocks: Sequence[list[int]], labels: Sequence[str], splits: Sequence[str | None], shares: Sequence[float]
) -> dict[str, dict[str, float]]:
    """label -> split -> how many documents the split still lacks, before the new blocks are placed."""
    present: dict[str, Counter[str]] = defaultdict(Counter)
    for label, split in zip(labels, splits, strict=True):
        if split:
            present[label][split] += 1
    new = Counter(labels[index] for block in blocks for index in block)
    return {
        label: {
            split: target - present[label][split]
            for split, target in zip(SPLITS, _whole_shares(new[label] + present[label].total(), shares), strict=True)
        }
        for label in sorted(new)
    }


def _whole_shares(count: int, shares: Sequence[float]) -> list[float]:
    """`count` documents in whole numbers by share, largest remainders first, and one at least for every split if there are enough."""
    exact = [count * share for share in shares]
    wanted = [split for split, share in enumerate(shares) if share > 0]
    whole = [int(target) for target in exact]
    for split in sorted(wanted, key=lambda split: (whole[split] - exact[split], split))[: count - sum(whole)]:
        whole[split] += 1
    if count >= len(wanted):
        for split in wanted:
            if whole[split] == 0:
                whole[max(wanted, key=lambda other: whole[other])] -= 1
                whole[split] = 1
    return [float(number) for number in whole]
