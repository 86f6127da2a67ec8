"""best_torchscript_model: one trained (or tuned) and exported model for each name in MODEL_NAMES.

Models are published one by one, `training/<model>/` or `tuning/<model>/`, each with its manifest; the asset is finished when all are.
With SEEDS each model is trained once a seed, `training/<model>/seed-<seed>/`, and the one that is best on the validation split becomes
`training/<model>/`. With LEARNING_CURVE the first one is trained on parts of the documents, too (learning_curve.py).
"""

import json
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from shutil import which

from docml_assets.steps import specs
from docml_assets.steps.learning_curve import missing_parts, plan_parts, publish_part
from docml_assets.steps.preparation import read_prepared, read_prepared_manifest, recorded_data
from docml_assets.steps.reuse import nothing_to_reuse, reused_outcome, take_earlier
from docml_assets.steps.specs import PlannedTraining
from docml_assets.steps.work import ModelsFailed, NotReady, Outcome, Work
from docml_contract.base import digest
from docml_contract.manifests import Manifest, cache_key
from docml_contract.names import (
    BEST_MODEL,
    ENCODED_SPLITS,
    INFERENCE,
    SEEDS,
    STATISTICS,
    TRAINING,
    TUNING,
    USER_FUNCTIONS,
    RunPlace,
)
from resources.jobs.interface import JobResult
from resources.store.manifests import check_finished, read_manifest


@dataclass(frozen=True)
class SeedModels:
    """A model's trainings: seed -> the finished folder, its manifest, macro-F1 on the validation split; and the seed that was chosen."""

    folders: Mapping[int, str]
    manifests: Mapping[int, Manifest]
    valid_f1: Mapping[int, float]

    @property
    def chosen(self) -> int:
        """The best on the validation split; of equal ones the first."""
        return max(self.valid_f1, key=lambda seed: self.valid_f1[seed])


def run_training(work: Work) -> Outcome | None:
    """Train or tune every model. None where the step is not performed, nothing fits and nothing needs it."""
    folders, manifests = _own(work)
    if manifests.keys() == folders.keys() and not (work.performs(TRAINING) and missing_parts(work)):
        for name, manifest in manifests.items():
            check_finished(work.store, manifest, folders[name])
        read_seeds(work)
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


def read_seeds(work: Work) -> dict[str, SeedModels]:
    """The trainings of every model of a run with SEEDS, verified; {} for a run without. NotReady if some are missing."""
    found = {}
    for name in work.settings.model_names if work.seeds else ():
        folders = {seed: work.place.seeded(name, seed) for seed in work.seeds}
        read = {seed: read_manifest(work.store, folder) for seed, folder in folders.items()}
        manifests = {seed: manifest for seed, manifest in read.items() if manifest is not None}
        missing = [str(seed) for seed in work.seeds if seed not in manifests]
        if missing:
            raise NotReady(
                f"{work.describe()}: {name} has not been trained with the seed {', '.join(missing)} (no manifest below "
                f"{work.store.uri(work.place.trained(name, tuned=False))}): materialize {BEST_MODEL} for this partition first"
            )
        for seed, manifest in manifests.items():
            check_finished(work.store, manifest, folders[seed])
        scores = {
            seed: json.loads(work.store.get(f"{folder}/{STATISTICS}"))["scores"] for seed, folder in folders.items()
        }
        found[name] = SeedModels(folders, manifests, {seed: float(score["valid_f1"]) for seed, score in scores.items()})
    return found


def models_version(manifests: Mapping[str, Manifest]) -> str:
    """The data version of a run's models: the models' own, by name."""
    return digest(["models", {name: manifest.data_version for name, manifest in manifests.items()}])


def _own(work: Work) -> tuple[dict[str, str], dict[str, Manifest]]:
    """This run's model folders and the manifests found there: tuned or trained as asked, else whichever is complete."""
    asked, other = (_found(work, _folders(work, work.place, tuned)) for tuned in (work.tunes, not work.tunes))
    return other if other[0].keys() == other[1].keys() != asked[1].keys() else asked


def _folders(work: Work, place: RunPlace, tuned: bool) -> dict[str, str]:
    return {name: place.trained(name, tuned=tuned) for name in work.settings.model_names}


def _further_folders(work: Work, place: RunPlace, tuned: bool) -> dict[str, str]:
    """The folders of a run's single seeds and of its learning curve's parts, keyed as no model is called."""
    if tuned:
        return {}
    seeds = {f"{name}, seed {n}": place.seeded(name, n) for name in work.settings.model_names for n in work.seeds}
    return seeds | {str(training): training.folder for training in plan_parts(work, place)}


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
            lambda place, tuned=tuned: _folders(work, place, tuned) | _further_folders(work, place, tuned),  # type: ignore[misc]
            targets | _further_folders(work, work.place, tuned),
            lambda found: all(manifest.inputs.get(ENCODED_SPLITS) == data for manifest in found.values()),
        )
        if taken is not None:
            taken = {name: manifest for name, manifest in taken.items() if name in targets}
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
    trainings = [
        PlannedTraining(name, folders[name] if seed is None else work.place.seeded(name, seed), seed)
        for name in missing
        for seed in work.seeds or (None,)
    ]
    trainings += plan_parts(work)
    untrained = [each for each in trainings if each.piece is None or read_manifest(work.store, each.folder) is None]
    if len(untrained) < len(trainings):
        work.reporter.say(f"kept from before: {'; '.join(str(each) for each in trainings if each not in untrained)}")
    jobs = _in_parallel(work, untrained, lambda training, cancel: _train(work, training, cancel))
    for name, seeds in read_seeds(work).items():
        _choose(work, name, folders[name], seeds)
    _, manifests = read_models(work)
    first = next(iter(manifests.values()))
    names = ", ".join(missing) + (f" with {len(work.seeds)} seeds each" if missing and work.seeds else "")
    parts = "the first model on parts of the documents" if any(each.part for each in untrained) else ""
    return Outcome(
        asset=BEST_MODEL,
        how="made",
        why=f"{'tuned' if work.tunes else 'trained'} {' and '.join(filter(None, (names, parts)))}"
        + (f"; kept {', '.join(kept)}" if kept else ""),
        data_version=models_version(manifests),
        inputs=first.inputs,
        folders=folders,
        manifests=manifests,
        jobs=tuple(jobs[training] for training in untrained),
    )


def _train(work: Work, training: PlannedTraining, cancel: threading.Event) -> JobResult:
    data, recorded = read_prepared(work), recorded_data(work)
    inputs = {ENCODED_SPLITS: data.data_version}
    files = {USER_FUNCTIONS: work.functions_source.encode()}
    spec = specs.training_spec(work, training, prepared=recorded, files=files, inputs=inputs, provenance=_provenance())
    listener = work.reporter.listener(str(training))
    result = work.jobs.run(spec, files, holder=work.holder, listener=listener, cancel=cancel)
    if training.part:
        publish_part(work, training, result, spec.spec_hash, inputs)
        return result
    work.publish(
        BEST_MODEL,
        training.folder,
        result,
        cache_key=cache_key(BEST_MODEL, spec=spec.spec_hash),
        data_version=result.output.data_version,
        inputs=inputs,
    )
    return result


def _choose(work: Work, name: str, folder: str, seeds: SeedModels) -> None:
    """Publish the model of the best seed as the run's. Its version says which others there were."""
    source, manifest = seeds.folders[seeds.chosen], seeds.manifests[seeds.chosen]
    scores = {str(seed): score for seed, score in seeds.valid_f1.items()}
    versions = {str(seed): found.data_version for seed, found in seeds.manifests.items()}
    work.publish(
        BEST_MODEL,
        folder,
        {SEEDS: (json.dumps({"chosen": seeds.chosen, "valid_f1": scores}, indent=2) + "\n").encode()},
        copied={f"{source}/{entry.path}": entry for entry in manifest.files},
        cache_key=cache_key(BEST_MODEL, chosen=manifest.cache_key, seeds=versions),
        data_version=digest(["seeds", seeds.chosen, versions]),
        inputs=manifest.inputs,
    )
    work.reporter.say(f"{name}: seed {seeds.chosen} is the best on the validation split, and the run's model")


Train = Callable[[PlannedTraining, threading.Event], JobResult]


def _in_parallel(work: Work, trainings: list[PlannedTraining], train: Train) -> dict[PlannedTraining, JobResult]:
    """Train, COMPARISON_PARALLEL_JOBS at once; one training's failure leaves the others to finish.

    ModelsFailed names every one that failed, with its reason. One at a time trains in this thread, where Dagster's interrupt
    arrives; several train in threads, whose jobs are told to stop when it arrives here.
    """
    at_once = work.settings.comparison_parallel_jobs or (1 if work.kind == "local" else max(1, len(trainings)))
    cancel = threading.Event()
    results: dict[PlannedTraining, JobResult] = {}
    failures: dict[PlannedTraining, Exception] = {}

    def attempt(training: PlannedTraining) -> None:
        try:
            results[training] = train(training, cancel)
        except Exception as error:
            failures[training] = error

    if at_once == 1 or len(trainings) == 1:
        for training in trainings:
            attempt(training)
    else:
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(attempt, training) for training in trainings]
            try:
                wait(futures)
            except BaseException:
                cancel.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    if failures:
        raise _failed(work, trainings, results, failures)
    return results


def _failed(
    work: Work,
    trainings: list[PlannedTraining],
    results: Mapping[PlannedTraining, JobResult],
    failures: Mapping[PlannedTraining, Exception],
) -> Exception:
    if len(trainings) == 1:
        return failures[trainings[0]]
    reasons = "\n".join(f"{training}: {error}" for training, error in failures.items())
    what, between = ("trainings", "; ") if work.seeds or work.learning_curve else ("models", ", ")
    kept = between.join(sorted(map(str, results))) or "none"
    return ModelsFailed(
        f"{work.describe()}: {len(failures)} of {len(trainings)} {what} failed (finished and kept: {kept}); "
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
