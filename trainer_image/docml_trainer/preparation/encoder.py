"""Documents -> rows, with the experimenter's encode_batch or encode_data, checked strictly. Runs inside a worker process.

A document that the encoder cannot read (it raises) is a failure, counted and reported. An encoder that returns something else
than its features declare is wrong for all documents, and ends the job.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from docml_contract.names import column_prefix
from docml_trainer.data.pictures import read_pictures
from docml_trainer.data.shapes import ATTENTION_MASK, OWN_COLUMNS, Shape, main_feature, shape_of
from docml_trainer.errors import PictureError, UserCodeError
from docml_trainer.functions import Context, UserFunctions, describe, explain
from docml_trainer.preparation import near_duplicates
from docml_trainer.preparation.columns import BadValue, Column, arrow_type, to_column
from docml_trainer.preparation.documents import EncodingFailure, InputDocument, Instance, Tally

UNTRUNCATED_LENGTH = "untruncated_length"
# Columns of a row besides the features; no feature's name begins with "@".
POSITION = "@position"
DIGEST = "@digest"
SIGNATURE = "@signature"
TOKENS = "@tokens "
UNTRUNCATED = "@untruncated "


@dataclass
class Encoder:
    """Encodes batches of documents for all models of the run, and counts in `tally` those that become no rows.

    `begin` is told what is being encoded: (first position, number).
    """

    functions: UserFunctions
    contexts: tuple[Context, ...]  # one a model
    sign: bool  # whether to compute near-duplicate signatures
    begin: Callable[[int, int], None]
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        if not (self.functions.encode_data or self.functions.encode_batch):
            raise UserCodeError(
                f"{self.functions.path.name}: found neither encode_data nor encode_batch; expected one of them"
            )

    @property
    def function_name(self) -> str:
        """The function in use; encode_batch is preferred where both are defined."""
        return "encode_batch" if self.functions.encode_batch else "encode_data"

    @cached_property
    def declared(self) -> dict[str, datasets.Features]:
        """Each model's own features, unprefixed, without untruncated_length."""
        return {context.model_name: self._declared(context) for context in self.contexts}

    @cached_property
    def features(self) -> datasets.Features:
        """The features of all models, prefixed."""
        prefixed: dict[str, Any] = {}
        for context in self.contexts:
            prefix = column_prefix(context.model_name, context.model_names)
            prefixed |= {prefix + name: feature for name, feature in self.declared[context.model_name].items()}
        return datasets.Features(prefixed)

    @cached_property
    def _shapes(self) -> dict[str, dict[str, Shape]]:
        return {
            model: {name: shape_of(name, feature) for name, feature in features.items()}
            for model, features in self.declared.items()
        }

    @property
    def near_duplicate_feature(self) -> str | None:
        """The tokens that are compared: those of the first model that has any."""
        return self._compared[1] if self._compared else None

    @cached_property
    def _compared(self) -> tuple[str, str] | None:
        """Model and feature by which near-duplicates are found."""
        tokens = ((model, main_feature(shapes)) for model, shapes in self._shapes.items())
        return next(((model, name) for model, name in tokens if name), None)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the rows: position, features of the declared types as lists, digest, signature, lengths. UserCodeError for a misspelt PADDING."""
        self._check_padding()
        fields: list[tuple[str, pa.DataType]] = [(POSITION, pa.int64())]
        for context in self.contexts:
            prefix = column_prefix(context.model_name, context.model_names)
            for name, shape in self._shapes[context.model_name].items():
                fields.append((prefix + name, arrow_type(shape)))
            fields.append((TOKENS + context.model_name, pa.int64()))
            fields.append((UNTRUNCATED + context.model_name, pa.int64()))
        return pa.schema([*fields, (DIGEST, pa.binary()), (SIGNATURE, pa.binary())])

    def __call__(self, documents: Sequence[InputDocument]) -> pa.Table:
        """The rows of these documents, fewer where some are dropped or fail. UserCodeError for a wrong encoder."""
        kept, encoded = self._keep_encoded(documents)
        arrays: dict[str, pa.Array] = {POSITION: pa.array([document.position for document in kept], pa.int64())}
        digests = [hashlib.sha256() for _ in kept]
        signatures = pa.nulls(len(kept), pa.binary())
        for context in self.contexts:
            model = context.model_name
            columns = self._columns(model, encoded[model], kept)
            prefix = column_prefix(model, context.model_names)
            for name, values in columns.items():
                arrays[prefix + name] = values.to_arrow()
                _update_digests(digests, prefix + name, values)
            arrays[TOKENS + model] = pa.array(_token_lengths(columns, len(kept)), pa.int64())
            untruncated = [row.get(UNTRUNCATED_LENGTH) for row in encoded[model]]
            arrays[UNTRUNCATED + model] = pa.array(untruncated, pa.int64())
            if self.sign and self._compared and self._compared[0] == model:
                signatures = _signatures(columns[self._compared[1]])
        arrays[DIGEST] = pa.array([digest.digest() for digest in digests], pa.binary())
        arrays[SIGNATURE] = signatures
        return pa.Table.from_arrays([arrays[name] for name in self.schema.names], schema=self.schema)

    def features_of(self, documents: Sequence[InputDocument]) -> list[dict[str, Any]]:
        """The features of what would be rows, as the collator takes them, without all that only a data set needs."""
        kept, encoded = self._keep_encoded(documents)
        values: dict[str, Sequence[Any]] = {}
        for context in self.contexts:
            columns = self._columns(context.model_name, encoded[context.model_name], kept)
            prefix = column_prefix(context.model_name, context.model_names)
            values |= {prefix + name: column.documents() for name, column in columns.items()}
        return [{name: of_all[index] for name, of_all in values.items()} for index in range(len(kept))]

    def _keep_encoded(self, documents: Sequence[InputDocument]) -> tuple[list[InputDocument], dict[str, list[Any]]]:
        """The documents that become rows, and by model what the encoder returned for them."""
        encoded = {context.model_name: self._encode(documents, context) for context in self.contexts}
        kept = [index for index, document in enumerate(documents) if self._keep(document, index, encoded)]
        return [documents[index] for index in kept], {
            model: [results[index] for index in kept] for model, results in encoded.items()
        }

    def _declared(self, context: Context) -> datasets.Features:
        features = self.functions.get_dataset_features(context)
        wrong = [name for name in features if name in OWN_COLUMNS or name.startswith("@")]
        if wrong:
            raise UserCodeError(
                f"{self.functions.path.name}: get_dataset_features declares {wrong}; expected the encoder's own features "
                f"only (docml adds {' and '.join(OWN_COLUMNS)}, and '@' begins its working columns)"
            )
        kept = {name: feature for name, feature in features.items() if name != UNTRUNCATED_LENGTH}
        if not kept:
            raise UserCodeError(f"{self.functions.path.name}: get_dataset_features declares no feature; expected some")
        return datasets.Features(kept)

    def _check_padding(self) -> None:
        """A misspelt name would leave its feature padded with 0. Any other may be of a model that is not in this run."""
        padded = set(self.functions.padding)
        declared = {name for features in self.declared.values() for name in features}
        for name in sorted(padded - declared - {ATTENTION_MASK}):
            if near := get_close_matches(name, sorted(declared - padded), n=1, cutoff=0.8):
                raise UserCodeError(
                    f"{self.functions.path.name}: PADDING names {name}; expected a feature that get_dataset_features declares: "
                    f"did you mean {near[0]}?"
                )

    def _encode(self, documents: Sequence[InputDocument], context: Context) -> list[Any]:
        """For each document what the encoder returned (a mapping or None), or its EncodingFailure."""
        results: list[Any] = [
            _failure(document, f"{', '.join(document.missing)}: the artifact has no such file", document.missing[0])
            if document.missing
            else None
            for document in documents
        ]
        readable = [index for index, document in enumerate(documents) if not document.missing]
        if self.functions.encode_batch and readable:
            batch = self._encode_batch([documents[index] for index in readable], context)
        else:
            batch = [self._encode_one(documents[index], context) for index in readable]
        for index, result in zip(readable, batch, strict=True):
            results[index] = self._with_pictures(documents[index], context.model_name, result)
        return results

    def _with_pictures(self, document: InputDocument, model: str, result: Any) -> Any:
        """What the encoder returned, with its pictures read; or the failure, if one of them is damaged."""
        names = [name for name, shape in self._shapes[model].items() if shape.is_picture]
        if not names or not isinstance(result, Mapping):
            return result
        read = dict(result)
        for name in names:
            try:
                read |= {name: read_pictures(result[name])} if name in result else {}
            except PictureError as error:
                return _failure(document, f"feature {name!r}: {error}", error.file)
        return read

    def _encode_batch(self, documents: Sequence[InputDocument], context: Context) -> list[Any]:
        encode = self.functions.encode_batch
        assert encode is not None
        self.begin(documents[0].position, documents[-1].position - documents[0].position + 1)
        instances = [Instance(document.files) for document in documents]
        try:
            returned = encode(instances, context)
        except BaseException as error:  # a sys.exit() costs its document, as any other error does
            if len(documents) == 1:
                return [self._failed(documents[0], instances[0], error)]
            return [self._encode_batch([document], context)[0] for document in documents]  # which one was it?
        return self._rows(returned, documents)

    def _encode_one(self, document: InputDocument, context: Context) -> Any:
        encode = self.functions.encode_data
        assert encode is not None
        self.begin(document.position, 1)
        instance = Instance(document.files)
        try:
            return encode(instance, context)
        except BaseException as error:
            return self._failed(document, instance, error)

    def _failed(self, document: InputDocument, instance: Instance, error: BaseException) -> EncodingFailure:
        return _failure(document, explain(error, self.functions.path), instance.asked)

    def _rows(self, returned: Any, documents: Sequence[InputDocument]) -> list[Any]:
        """What encode_batch returned, document by document: it may return a list, or a mapping of lists as tokenizers do."""
        expected = f"a list of {len(documents)} (one entry per document), or a mapping of such lists"
        of_batch = f"for {len(documents)} documents from artifact {documents[0].guid}"
        if isinstance(returned, Mapping):
            for name, values in returned.items():
                if not hasattr(values, "__len__") or len(values) != len(documents):
                    raise self._wrong(f"feature {name!r} {of_batch}: found {describe(values)}, expected {expected}")
            return [{name: values[index] for name, values in returned.items()} for index in range(len(documents))]
        if not isinstance(returned, Sequence) or len(returned) != len(documents):
            raise self._wrong(f"{of_batch}: found {describe(returned)}, expected {expected}")
        return list(returned)

    def _keep(self, document: InputDocument, index: int, encoded: Mapping[str, Sequence[Any]]) -> bool:
        results = [of_model[index] for of_model in encoded.values()]
        for result in results:
            if isinstance(result, EncodingFailure):
                self.tally.fail(result)
                return False
        if any(result is None for result in results):
            self.tally.drop(document.label)
            return False
        for model, result in zip(encoded, results, strict=True):
            self._check_keys(model, document, result)
        return True

    def _check_keys(self, model: str, document: InputDocument, row: Any) -> None:
        declared = self._shapes[model]
        where = f"for artifact {document.guid} (label {document.label!r})"
        if not isinstance(row, Mapping):
            raise self._wrong(f"{where}: found {describe(row)}, expected a dict of {list(declared)} or None")
        if missing := [name for name in declared if name not in row]:
            raise self._wrong(
                f"{where}: feature {missing[0]!r} is missing; found {list(row)}, expected {list(declared)} "
                "as get_dataset_features declares"
            )
        if extra := [name for name in row if name not in declared and name != UNTRUNCATED_LENGTH]:
            raise self._wrong(
                f"{where}: feature {extra[0]!r} is not declared; expected only {list(declared)} "
                "(declare it in get_dataset_features, or do not return it)"
            )
        length = row.get(UNTRUNCATED_LENGTH, 0)
        if not isinstance(length, Integral) or isinstance(length, bool) or length < 0:
            raise self._wrong(f"{where}: {UNTRUNCATED_LENGTH} is {describe(length)}; expected a number of tokens")

    def _columns(
        self, model: str, rows: Sequence[Mapping[str, Any]], documents: Sequence[InputDocument]
    ) -> dict[str, Column]:
        columns = {}
        for name, shape in self._shapes[model].items():
            try:
                columns[name] = to_column(shape, [row[name] for row in rows])
            except BadValue as wrong:
                document = documents[wrong.index]
                raise self._wrong(
                    f"for artifact {document.guid} (label {document.label!r}): feature {name!r}: {wrong}"
                ) from wrong
        return columns

    def _wrong(self, message: str) -> UserCodeError:
        return UserCodeError(f"{self.functions.path.name}: {self.function_name} returned a wrong encoding {message}")


def _failure(document: InputDocument, error: str, file: str | None) -> EncodingFailure:
    return EncodingFailure(document.guid, document.label, file or ", ".join(document.files), error)


def _update_digests(digests: Sequence[Any], name: str, values: Column) -> None:
    """Add one feature's values to every document's digest: name, lengths and values, whatever type stores them."""
    wide, offsets, lengths = np.ascontiguousarray(values.wide()), values.offsets, values.document_lengths()
    for index, digest in enumerate(digests):
        digest.update(json.dumps([name, lengths[index]]).encode())
        digest.update(wide[offsets[index] : offsets[index + 1]].data)


def _signatures(tokens: Column) -> pa.Array:
    documents = (tokens.flat[start:end] for start, end in pairwise(tokens.offsets))
    return pa.array([row.tobytes() for row in near_duplicates.compute_signatures(documents)], pa.binary())


def _token_lengths(columns: Mapping[str, Column], count: int) -> list[int | None]:
    """Tokens of each document: what its attention mask marks, or else the size of its main feature; None without tokens."""
    name = main_feature({name: values.shape for name, values in columns.items()})
    if name is None:
        return [None] * count
    mask = columns.get(ATTENTION_MASK)
    if mask is not None and mask.shape.rank:
        marked = np.concatenate([[0], np.cumsum(mask.flat != 0)])
        return [int(length) for length in np.diff(marked[mask.offsets])]
    return [int(length) for length in np.diff(columns[name].offsets)]
