"""best_torchscript_model: one trained (or tuned) and exported model for each name in MODEL_NAMES.

Models are published one by one, `training/<model>/` or `tuning/<model>/`, each with its manifest; the asset is finished when all are.
"""

import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from importlib import metadata
from shutil import which

from docml_assets.steps import specs
from docml_assets.steps.preparation import read_prepared, read_prepared_manifest, recorded_data
from docml_assets.steps.reuse import nothing_to_reuse, reused_outcome, take_earlier
from docml_assets.steps.work import ModelsFailed, NotReady, Outcome, Work
from docml_contract.base import digest
from docml_contract.manifests import Manifest, cache_key
from docml_contract.names import BEST_MODEL, ENCODED_SPLITS, INFERENCE, TRAINING, TUNING, USER_FUNCTIONS, RunPlace
from resources.jobs.interface import JobResult
from resources.store.manifests import check_finished, read_manifest


def run_training(work: Work) -> Outcome | None:
    """Train or tune every model. None where the step is not performed, nothing fits and nothing needs it."""
    folders, manifests = _own(work)
    if manifests.keys() == folders.keys():
        for name, manifest in manifests.items():
            check_finished(work.store, manifest, folders[name])
        return _finished(work, folders, manifests)
    if not (work.performs(TRAINING) or work.performs(TUNING)):
        return _skip(work)
    return _make(work, folders, manifests)


def read_models(work: Work) -> tuple[dict[str, str], dict[str, Manifest]]:
    """Folders and manifests of the run's models, all of them; NotReady names the ones that are missing."""
    folders, manifests = _own(work)
    missing = [name for name in folders if name not in manifests]
    if missing:
        raise NotReady(
            f"{work.describe()}: {BEST_MODEL} has not been materialized in this run (no model for {', '.join(missing)}): "
            f"materialize {BEST_MODEL} for this partition first, or select it together with this asset"
        )
    return folders, manifests


def models_version(manifests: Mapping[str, Manifest]) -> str:
    """The data version of a run's models: the models' own, by name."""
    return digest(["models", {name: manifest.data_version for name, manifest in manifests.items()}])


def _own(work: Work) -> tuple[dict[str, str], dict[str, Manifest]]:
    """This run's model folders and the manifests found there: tuned or trained as asked, else whichever is complete."""
    asked, other = (_found(work, _folders(work, work.place, tuned)) for tuned in (work.tunes, not work.tunes))
    return other if other[0].keys() == other[1].keys() != asked[1].keys() else asked


def _folders(work: Work, place: RunPlace, tuned: bool) -> dict[str, str]:
    return {name: place.trained(name, tuned=tuned) for name in work.settings.model_names}


def _found(work: Work, folders: dict[str, str]) -> tuple[dict[str, str], dict[str, Manifest]]:
    found = {name: read_manifest(work.store, folder) for name, folder in folders.items()}
    return folders, {name: manifest for name, manifest in found.items() if manifest is not None}


def _finished(work: Work, folders: dict[str, str], manifests: dict[str, Manifest]) -> Outcome:
    first = next(iter(manifests.values()))
    maker = first.run if first.run != work.place.number else None
    return Outcome(
        asset=BEST_MODEL,
        how="finished",
        why=f"finished on {max(m.created_at for m in manifests.values())} and verified; no job was launched"
        + (f" (taken from run {maker})" if maker else ""),
        data_version=models_version(manifests),
        inputs=first.inputs,
        folders=folders,
        manifests=manifests,
        reused_from=maker,
    )


def _skip(work: Work) -> Outcome | None:
    """Take the newest earlier run's models of the same names that saw the same data, trained or tuned."""
    needed = work.performs(INFERENCE)
    if not needed and read_manifest(work.store, work.place.preparation) is None:
        return None
    data = read_prepared_manifest(work).data_version
    for tuned in (work.tunes, not work.tunes):
        targets = _folders(work, work.place, tuned)
        taken = take_earlier(
            work,
            lambda place, tuned=tuned: _folders(work, place, tuned),  # type: ignore[misc]
            targets,
            lambda found: all(manifest.inputs.get(ENCODED_SPLITS) == data for manifest in found.values()),
        )
        if taken is not None:
            return reused_outcome(BEST_MODEL, taken, targets, models_version(taken))
    if needed:
        raise nothing_to_reuse(
            work,
            TUNING if work.tunes else TRAINING,
            f"of {', '.join(work.settings.model_names)} trained on the same data",
        )
    return None


def _make(work: Work, folders: dict[str, str], manifests: dict[str, Manifest]) -> Outcome:
    kept = sorted(manifests)
    if kept:
        work.reporter.say(f"kept from before: {', '.join(kept)}")
    missing = [name for name in folders if name not in manifests]
    jobs = _in_parallel(work, missing, lambda name, cancel: _train(work, name, folders[name], cancel))
    _, manifests = read_models(work)
    first = next(iter(manifests.values()))
    return Outcome(
        asset=BEST_MODEL,
        how="made",
        why=f"{'tuned' if work.tunes else 'trained'} {', '.join(missing)}"
        + (f"; kept {', '.join(kept)}" if kept else ""),
        data_version=models_version(manifests),
        inputs=first.inputs,
        folders=folders,
        manifests=manifests,
        jobs=tuple(jobs[name] for name in missing),
    )


def _train(work: Work, name: str, folder: str, cancel: threading.Event) -> JobResult:
    data, recorded = read_prepared(work), recorded_data(work)
    inputs = {ENCODED_SPLITS: data.data_version}
    files = {USER_FUNCTIONS: work.functions_source.encode()}
    spec = specs.training_spec(work, name, prepared=recorded, files=files, inputs=inputs, provenance=_provenance())
    result = work.jobs.run(spec, files, holder=work.holder, listener=work.reporter.listener(name), cancel=cancel)
    work.publish(
        BEST_MODEL,
        folder,
        result,
        cache_key=cache_key(BEST_MODEL, spec=spec.spec_hash),
        data_version=result.output.data_version,
        inputs=inputs,
    )
    return result


Train = Callable[[str, threading.Event], JobResult]


def _in_parallel(work: Work, names: list[str], train: Train) -> dict[str, JobResult]:
    """Train the models, COMPARISON_PARALLEL_JOBS at once; one model's failure leaves the others to finish.

    ModelsFailed names every model that failed, with its reason. One at a time trains in this thread, where Dagster's interrupt
    arrives; several train in threads, whose jobs are told to stop when it arrives here.
    """
    at_once = work.settings.comparison_parallel_jobs or (1 if work.kind == "local" else len(names))
    cancel = threading.Event()
    results: dict[str, JobResult] = {}
    failures: dict[str, Exception] = {}

    def attempt(name: str) -> None:
        try:
            results[name] = train(name, cancel)
        except Exception as error:
            failures[name] = error

    if at_once == 1 or len(names) == 1:
        for name in names:
            attempt(name)
    else:
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(attempt, name) for name in names]
            try:
                wait(futures)
            except BaseException:
                cancel.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    if failures:
        raise _failed(work, names, results, failures)
    return results


def _failed(
    work: Work, names: list[str], results: Mapping[str, JobResult], failures: dict[str, Exception]
) -> Exception:
    if len(names) == 1:
        return failures[names[0]]
    reasons = "\n".join(f"{name}: {error}" for name, error in failures.items())
    kept = ", ".join(sorted(results)) or "none"
    return ModelsFailed(
        f"{work.describe()}: {len(failures)} of {len(names)} models failed (finished and kept: {kept}); "
        f"materialize again to train only what is missing\n{reasons}"
    )


def _provenance() -> dict[str, str]:
    """Where the code came from, for the model card."""
    found = {"docml": metadata.version("docml")}
    git = (
        subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if which("git")
        else None
    )
    if git is not None and git.returncode == 0:
        found["git_revision"] = git.stdout.strip()
    return found
