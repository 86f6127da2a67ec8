"""From predictions to a report that people decide by: plain functions over tables; no torch, no Dagster.

    predictions ─ statistics, bootstrap ─ comparison, past ─ summary ─ schema (report.json)
                                                                    └ plots (PNG), page (report.html)

`build.build_report` makes a run's report, `past.compare_runs` compares two runs, `checks` answers what the asset checks ask.
"""
