"""Predict the test split with every model of the run: `python -m docml_trainer infer`.

    processing/input/spec/spec.json    which models, and their hashes
    processing/input/test/             the test split, in the datasets format
    processing/input/valid/            the validation split, where a decision policy is made from its answers
    processing/input/models/<path>/    model.pt and export.json of each model
    processing/output/result/          predictions.parquet, documents.parquet, timings.json, OUTPUT.json, perhaps validation.parquet

The models are the files that production would load. Documents of about one length go through a model together, so that hardly anything
is padded; answers do not depend on who shares a batch with whom (within 1e-5 of a probability).
"""

from docml_contract.jobs import InferTask
from docml_trainer.container import Folders
from docml_trainer.errors import FolderError
from docml_trainer.inference.answers import answer_splits
from docml_trainer.inference.model import ModelFiles


def main(folders: Folders) -> None:
    """Verify, load, predict, write."""
    task = read_task(folders)
    hosts = folders.resource_config()
    if hosts.index > 0:
        print(f"{min(hosts.hosts)} predicts alone; nothing is left for {hosts.current_host}.", flush=True)
        return
    folders.verify_inputs()
    files = [ModelFiles.verify(name, folders.channel("models"), task.models[name]) for name in task.model_names]
    answer_splits(folders, task, files, folders.output)


def read_task(folders: Folders) -> InferTask:
    """The spec's task. FolderError if it is not an inference, or lacks one of its models."""
    task = folders.spec().task
    if not isinstance(task, InferTask):
        raise FolderError(f"the spec asks for {task.command!r}; expected an inference task")
    unknown = [name for name in task.model_names if name not in task.models]
    if unknown:
        raise FolderError(
            f"the spec says nothing about the files of {', '.join(unknown)}; expected path and hashes of each model"
        )
    return task
