"""Reconciliation: a production database and a production bucket, joined into versioned artifacts of an experiment.

    labels ──┐
             ├── plan ── copies ── process ── reconciliation: from end to end
    files  ──┘

`labels` and `plan` are pure functions over tables; `copies` asks both sides and uses the store's bulk copy; `process` hands
artifacts to worker processes that run process_func; `findings` is what was left out, and why.
"""
