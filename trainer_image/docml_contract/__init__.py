"""What the orchestrator and the containers agree on: names, specs, manifests, hyperparameters, versions.

Depends on pydantic and the standard library only, so that both sides can import it. Data flow through it:

    settings --(docml_assets)--> JobSpec --(resources)--> container --(docml_trainer)--> JobOutput --> Manifest

Errors:

    ContractError            something that crossed the boundary is not what was agreed
    ├── BadName              an experiment, model, file or GUID name that is not allowed
    ├── BadHyperparameter    a hyperparameter value that is out of range or of the wrong type
    ├── IncompleteArtifact   a manifest names files that are missing or differ
    ├── ProcessFuncBroken    the worker's Python cannot load user_defined_funcs.py
    ├── UseCaseError         a function of a use case does not do what it should
    └── UnreadableDocument   JSON or schema of a spec, manifest or output is wrong
"""
