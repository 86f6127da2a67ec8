"""docs/settings.md, made from the key table: `python docs/make_settings.py > docs/settings.md`."""

from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from docml_assets.experiment.settings.key_reader import extra_of
from docml_assets.experiment.settings.keys import Keys
from docml_contract.hyperparameters import TrainingHyperparameters

INTRODUCTION = """# settings.ini

Made from the code by `python docs/make_settings.py > docs/settings.md`; a test keeps it true.

`settings.ini` has three sections. `docml validate` reports every mistake in it at once.

- A value may go on over further lines if these are indented. Lines whose first character is `#` or `;` are comments; a comment
  behind a value is an error. `%` is an ordinary character. Keys of `[settings]` are upper-case.
- Values may be quoted, with `"` or `'` around all of them; inside, a doubled quote stands for one. What stands in quotes is taken as
  it is.
- Lists are comma-separated, or one item a line. An item that holds a comma, a quote, `#`, `;`, `*`, `?` or `[` stands in quotes:
  `IGNORED_LABELS = "invoice, paid", other`.
- File names may be patterns: `page_*.png` stands for one or more files, in natural order (`page_2.png` before `page_10.png`); `?` stands
  for one character, `[12]` for one of these. Keys that do not say so take no patterns.
- `none` leaves a key at its default where that is none, auto, a list or a name.
- A byte order mark and Windows line ends are accepted, in every file of the folder.
- The file is copied into the store with every run: it must hold no secret.
- A run keeps its settings for ever. Only the keys marked *free* do not freeze with it: the sensors and `docml run` take them
  from the folder, everything else from the run's claim.

## [settings]

| key | meaning | value | default | |
| --- | --- | --- | --- | --- |"""

HYPERPARAMETERS = """
## [hyperparameters]

Constants. These are read by the training loop; any further key is the experiment's own: `load_model` sees all, `encode_data`
only the further ones, and only these enter the version of prepared data. Values are read as JSON (`2`, `1e-4`, `true`, `null`, `[1, 2]`,
`"text"`), and as text where they are not JSON. A key that is nearly one of these, or another library's name for it (`lr`,
`batch_size`), is refused, and so is a value that is nearly a number (`.5`, `1,024`) or a switch (`yes`, `off`): it would go
unnoticed. A text of that kind stands in quotes.

Of the further keys one means something to the platform: `max_length`, a whole number, says how long a document may become, in values of
its token feature (`input_ids`). `encode_data` has to truncate to it; nothing else does. A model whose export is valid for one shape only
(Longformer, for one) is exported for documents of that length, without `max_length` for the longest document of training and
validation; longer ones are refused when they are to be predicted.

| key | meaning | default |
| --- | --- | --- |"""

TUNABLE = """
## [tunable]

What `RUN_TUNING = true` searches. A key may stand in `[hyperparameters]` too: training takes the constant, tuning the range.

| written | means |
| --- | --- |
| `learning_rate = 1e-6 -> 1e-4` | an interval, both ends included |
| `learning_rate = 1e-6 -> 1e-4 log` | the same, searched on a logarithmic scale |
| `layers = 2 -> 6` | an interval of whole numbers, as both ends are |
| `train_batch_size = 8, 16, 32` | a choice; the only kind that `TUNING_STRATEGY = Grid` takes |

At most 30 keys, and at most 30 values a choice; at most 100 hyperparameters in all (limits of SageMaker).

## [hyperparameters.MODEL] and [tunable.MODEL]

In a comparison, values and ranges of one model, beside those that all have in common:

```ini
[settings]
MODEL_NAMES = minilm, longformer

[hyperparameters]
epochs = 3
max_length = 512

[hyperparameters.longformer]
max_length = 4096
train_batch_size = 2
```

A constant of a model's own is not searched for it, unless `[tunable.MODEL]` names it too."""


def reference() -> str:
    """The whole document."""
    lines = [INTRODUCTION, *_settings(), HYPERPARAMETERS, *_hyperparameters(), TUNABLE]
    return "\n".join(lines) + "\n"


def _settings() -> Iterator[str]:
    for name, field in Keys.model_fields.items():
        extra = extra_of(name)
        default = "**required**" if field.is_required() else extra["shown"] or _text(field.get_default())
        free = "free" if extra["operational"] else ""
        yield f"| {name.upper()} | {field.description} | {extra['expected']} | {default} | {free} |".replace(
            "  |", " |"
        )


def _hyperparameters() -> Iterator[str]:
    for name, field in TrainingHyperparameters.model_fields.items():
        yield f"| {name} | {field.description} | {_text(field.default)} |"


def _text(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    print(reference(), end="")
