"""Deployment folders of classifiers with random weights, for the benchmarks of predict and serve, and for tests."""

from collections.abc import Sequence
from pathlib import Path

from bench.inference import export
from docml_contract import names
from docml_contract.manifests import Manifest, ModelContext, describe_folder, utc_now


def deployment_folder(folder: Path, model: str, labels: Sequence[str], file: str, functions: str) -> Path:
    """`model`: as `bench.inference.export` knows it. `file`: the one that documents have. `functions`: the experimenter's code."""
    export(folder, model, list(labels))
    context = ModelContext(
        experiment="EXP-1-bench",
        run=1,
        model_name=model,
        model_names=(model,),
        labels=tuple(labels),
        own_hyperparameters={},
        production_files=(file,),
        model_input_files=(file,),
        optional_files=(),
        has_process_func=False,
    )
    return seal(folder, context, functions)


def seal(folder: Path, context: ModelContext, functions: str, requirements: str = "") -> Path:
    """Make a deployment folder of one that holds the exported model: what stands beside it, and the manifest over all."""
    (folder / names.MODEL_CONTEXT).write_bytes(context.to_bytes())
    (folder / names.USER_FUNCTIONS).write_text(functions)
    (folder / names.REQUIREMENTS).write_text(requirements)
    manifest = Manifest(
        asset=names.DEPLOYMENT,
        experiment=context.experiment,
        run=context.run,
        created_at=utc_now(),
        cache_key="0" * 64,
        data_version="0" * 64,
        inputs={},
        code_version="1",
        files=describe_folder(folder),
    )
    (folder / names.MANIFEST).write_bytes(manifest.to_bytes())
    return folder
