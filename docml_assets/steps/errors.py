"""Exceptions of the steps, below `DocmlError`.

StepError                what a step found wrong
├── NotReady             an asset that the step reads has not been materialized in this run
├── NothingToReuse       a step that is not performed finds no earlier artifact whose inputs fit
├── UnclaimedRun         a run that nobody claimed, and that may not be claimed from here
└── ModelsFailed         some models of a comparison failed; the finished ones are kept
"""

from docml_assets.errors import DocmlError


class StepError(DocmlError):
    """What a step found wrong."""


class NotReady(StepError):
    """An asset that the step reads has not been materialized in this run."""


class NothingToReuse(StepError):
    """A step that is not performed finds no earlier artifact whose inputs fit."""


class UnclaimedRun(StepError):
    """A run that nobody claimed, and that may not be claimed from here."""


class ModelsFailed(StepError):
    """Some models of a comparison failed; the finished ones are kept."""
