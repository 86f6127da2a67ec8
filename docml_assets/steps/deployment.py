"""The deployment folder of a model, `run_<N>/deployment/<model>/`: everything that an answer needs, hashed.

It is made with the inference report. For a run that was finished before there were such folders it is made when somebody first
wants to use the model; no job is launched for it.
"""

import hashlib
import json
from collections.abc import Mapping

from docml_assets.experiment.functions import defined_functions
from docml_assets.report.schema import read_report
from docml_assets.steps.preparation import read_labels
from docml_assets.steps.reconciliation import read_units
from docml_assets.steps.training import read_models
from docml_assets.steps.work import StepError, Work
from docml_contract.base import digest
from docml_contract.hyperparameters import own
from docml_contract.manifests import Manifest, ModelContext, cache_key
from docml_contract.names import (
    BEST_MODEL,
    DEPLOYMENT,
    EXPORT,
    MANIFEST,
    MODEL_CONTEXT,
    POLICY,
    REQUIREMENTS,
    STATISTICS,
    TORCHSCRIPT,
    USE_CASE_CODE,
    USER_FUNCTIONS,
)
from docml_contract.policy import Policy
from docml_contract.use_cases import UseCaseCode
from resources.store.manifests import check_finished, read_manifest


class UnknownModel(StepError):
    """A run has no model of that name, or several of which none was named."""


def choose_model(work: Work, name: str | None) -> str:
    """The model that is meant: the named one, or the only one of the run. UnknownModel lists the names."""
    models = work.settings.model_names
    if name is None and len(models) == 1:
        return models[0]
    if name not in models:
        found = "compares" if name is None else f"has no model {name!r}, but"
        raise UnknownModel(f"{work.describe()} {found} {', '.join(models)}: name one of them with --model")
    return name


def read_deployment(work: Work, model: str) -> Manifest:
    """The manifest of the model's deployment folder, verified; made now if it is not there.

    Raises NotReady if the run has no such model yet, IncompleteArtifact if files are missing or differ.
    """
    folder = work.place.deployment(model)
    manifest = read_manifest(work.store, folder) or make_deployment(work, model, reported_policy(work, model))
    check_finished(work.store, manifest, folder)
    return manifest


def reported_policy(work: Work, model: str) -> Policy | None:
    """The decision policy that the run's report made. ReportError where the run wants one and has no report."""
    if work.settings.auto_accept_precision is None:
        return None
    return read_report(work.store, work.place).policies[model]


def read_context(work: Work, model: str) -> ModelContext:
    """context.json of the model's deployment folder."""
    key = f"{work.place.deployment(model)}/{MODEL_CONTEXT}"
    return ModelContext.from_bytes(work.store.get(key), work.store.uri(key))


def manifest_sha256(work: Work, model: str) -> str:
    """The hash by which whoever loads the deployment folder knows that it is the one that was meant."""
    return hashlib.sha256(work.store.get(f"{work.place.deployment(model)}/{MANIFEST}")).hexdigest()


def make_deployments(work: Work, policies: Mapping[str, Policy]) -> None:
    """The deployment folders of all models of the run. policies: by model, where the run has decision policies."""
    for model in work.settings.model_names:
        make_deployment(work, model, policies.get(model))


def make_deployment(work: Work, model: str, policy: Policy | None) -> Manifest:
    """Copy the model's files, and write what else an answer needs beside them; a finished folder stays as it is."""
    folders, manifests = read_models(work)
    folder, trained = folders[model], manifests[model]
    copied = {f"{folder}/{name}": trained.file(name) for name in (TORCHSCRIPT, EXPORT)}
    context = _context(work, model)
    files = {
        USER_FUNCTIONS: work.functions_source.encode(),
        MODEL_CONTEXT: context.to_bytes(),
        REQUIREMENTS: _requirements(json.loads(work.store.get(f"{folder}/{STATISTICS}"))),
    }
    # The bytes of a TorchScript file differ from one trace to the next; the model's version is what it means.
    meaning = [DEPLOYMENT, context.model_dump(mode="json"), work.functions_source, trained.data_version]
    if policy is not None:
        files[POLICY] = policy.to_bytes()
        meaning.append(policy.meaning)
    if (code := _use_case_code(work)) is not None:
        files[USE_CASE_CODE] = code.to_bytes()
        meaning.append(code.model_dump(mode="json"))
    return work.publish(
        DEPLOYMENT,
        work.place.deployment(model),
        files,
        copied=copied,
        cache_key=cache_key(DEPLOYMENT, model=trained.data_version, context=context.model_dump(mode="json")),
        data_version=digest(meaning),
        inputs={BEST_MODEL: trained.data_version},
    )


def _use_case_code(work: Work) -> UseCaseCode | None:
    """What of the use case an answer needs; None where it needs nothing."""
    if work.use_case is None:
        return None
    units = read_units(work) is not None
    return work.use_case.code(units=units) if units or "files" in work.use_case.functions else None


def read_use_case(work: Work, model: str) -> UseCaseCode | None:
    """use_case.json of the model's deployment folder, where there is one."""
    manifest = read_manifest(work.store, work.place.deployment(model))
    if manifest is None or USE_CASE_CODE not in {entry.path for entry in manifest.files}:
        return None
    key = f"{work.place.deployment(model)}/{USE_CASE_CODE}"
    return UseCaseCode.from_bytes(work.store.get(key), work.store.uri(key))


def _context(work: Work, model: str) -> ModelContext:
    settings = work.settings
    return ModelContext(
        experiment=work.place.experiment,
        run=work.place.number,
        model_name=model,
        model_names=settings.model_names,
        labels=tuple(read_labels(work)),
        own_hyperparameters=own(settings.hyperparameters_of(model)),
        production_files=settings.files_from_prod,
        model_input_files=settings.model_input_files,
        optional_files=settings.files_optional,
        has_process_func="process_func" in defined_functions(work.functions_source),
    )


def _requirements(statistics: Mapping[str, Mapping[str, str]]) -> bytes:
    """The libraries that the model was trained with, as pip reads them."""
    versions = dict(statistics.get("environment", {}))
    python = versions.pop("python", "unknown")
    lines = [
        f"# the model was trained under Python {python} with:",
        *(f"{k}=={v}" for k, v in sorted(versions.items())),
    ]
    return ("\n".join(lines) + "\n").encode()
