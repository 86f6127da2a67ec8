"""The Dagster side of docml: assets, sensors, command line. Imports no torch, and nothing user-written.

Errors (each message says what was found, what was expected and the remedy):

    DocmlError               the input is wrong or the work cannot go on
    ├── ExperimentError      an experiment folder is missing or unreadable
    │   └── ProblemsError    mistakes in an experiment, all of them (`problems`)
    │       └── SettingsError   … in settings.ini
    ├── RunClaimed           the run number belongs to another request
    ├── RunChanged           a claimed run's folder has changed since
    ├── NothingToDo          a folder without mistakes from which the sensor can start nothing now
    ├── NewDataIgnored       new data are wanted, but the settings keep a run from reading them
    ├── BadPartition         a partition key that no run can have
    ├── DeploymentError      a DOCML_* variable has a value that does not work
    ├── TrackingError        the tracking account is missing or wrong
    ├── ImageError           an image cannot be built or pushed
    ├── ReconciliationError  labels and files cannot be reconciled (docml_assets/reconcile/errors.py)
    ├── StepError            what a step found wrong (docml_assets/steps/work.py)
    └── ReportError          predictions, or what accompanies them, cannot be reported on
"""
