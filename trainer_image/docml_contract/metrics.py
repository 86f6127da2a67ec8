"""What the trainer prints after every epoch, and the regular expressions that read it from a log.

One line, `docml: valid_f1=0.8312; valid_f1_epoch=0.81; …`. A tuner ranks trials by the *latest* value it read, so a plain name
carries the value of the best epoch so far, which is the model that will be kept; `<name>_epoch` carries the epoch's own.
"""

from collections.abc import Mapping

KEPT_METRICS = ("valid_f1", "valid_accuracy", "valid_loss")  # of the best epoch so far
EPOCH_METRICS = (*(f"{name}_epoch" for name in KEPT_METRICS), "train_loss")
TRAINER_METRICS = (*KEPT_METRICS, *EPOCH_METRICS)


def metric_line(values: Mapping[str, float]) -> str:
    """The line for `values`, in full precision (`1e-05` where repr writes it so)."""
    return "docml: " + "; ".join(f"{name}={value!r}" for name, value in values.items())


def metric_regex(name: str) -> str:
    """Reads one metric of `metric_line`; one capture group, as SageMaker asks."""
    return rf"docml: .*\b{name}=([-+0-9.eE]+)"


# (name, regex) of everything that the trainer prints: what METRIC_DEFINITIONS defaults to.
METRIC_DEFINITIONS = tuple((name, metric_regex(name)) for name in TRAINER_METRICS)
