"""Reconciliation: a production database and a production bucket, joined into versioned artifacts of an experiment.

    labels ── label_rows ──┐
    production ── plan ────┴── join ── copy ── process (workers) ── verify, repair

Pure functions over tables (`label_rows`, `plan`), the store's bulk copy, and worker processes for process_func.
"""

from docml_assets.reconcile.errors import NothingLeft, ProcessFuncBroken, ReconciliationError, TooManyFailures
from docml_assets.reconcile.step import Reconciled, reconcile

__all__ = ["NothingLeft", "ProcessFuncBroken", "Reconciled", "ReconciliationError", "TooManyFailures", "reconcile"]
