"""The Dagster side of docml: assets, sensors, command line. Imports no torch, and nothing user-written.

Errors (each message says what was found, what was expected and the remedy):

    DocmlError               the input is wrong or the work cannot go on
    ├── ExperimentError      an experiment folder is missing or unreadable
    │   ├── SettingsError    mistakes in settings.ini, all of them (`problems`)
    │   └── FunctionsError   mistakes in user_defined_funcs.py, all of them (`problems`)
    ├── RunClaimed           the run number belongs to another request
    ├── RunChanged           a claimed run's folder has changed since
    └── ReportError          predictions, or what accompanies them, cannot be reported on
"""
