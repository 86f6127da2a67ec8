"""What runs inside a job's container, or inside its local counterpart, a process group: prepare, train, infer.

`python -m docml_trainer prepare|train|infer` reads folders (`folders`) and the user's functions (`functions`), and writes
folders. It knows nothing of buckets, of Dagster or of SageMaker's API.

`Stopped` is no error: the end of a process that was told to stop. Errors, all of which end the job with one clear reason instead of a traceback:

    TrainerError             the job cannot be done as asked
    ├── FolderError          the job's folder is not laid out as the contract says
    ├── UserCodeError        a function in user_defined_funcs.py is missing, raised, or returned the wrong thing
    ├── DataError            the documents, tables or encoded rows are not what the job needs
    │   └── PictureError     a picture cannot be read
    ├── TrainingError        the training diverged, ran out of memory, or lost a process
    ├── ExportError          the TorchScript model is not the trained model
    └── ModelFileError       an exported model is missing, was changed after training, or is not what its export.json says
"""
