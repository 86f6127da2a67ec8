"""From predictions to a report that people decide by: plain functions over tables; no torch, no Dagster.

    predictions ─ statistics ─ comparison ─ summary ─ schema (report.json)
                                                       └ plots (PNG), page (report.html)

`build.build_report` makes a run's report, `comparison.compare_runs` compares two runs, `checks` answers what the asset checks ask.
"""
