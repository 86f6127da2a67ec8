"""report.json: what a run's inference report says in numbers. The HTML page and the summary show the same numbers."""

from typing import Annotated

from pydantic import AllowInfNan, Field

from docml_assets.errors import ReportError
from docml_contract.base import Document
from docml_contract.names import BASELINE, REPORT_JSON, RunPlace
from docml_contract.policy import Policy
from resources.store import Store
from resources.store.manifests import read_manifest, read_recorded

NO_DIFFERENCE = "no difference shown"
MANY_LABELS = 100

Number = Annotated[float, AllowInfNan(False)]
Share = Annotated[float, AllowInfNan(False), Field(ge=0, le=1)]
Interval = tuple[Number, Number]


class PerLabel(Document):
    """One label's scores; all 0 where undefined (scikit-learn's zero_division = 0)."""

    label: str
    f1: Share
    accuracy: Share = Field(description="correct / support")
    precision: Share
    recall: Share
    support: int = Field(ge=0, description="test documents of this label")
    correct: int = Field(ge=0)


class Bin(Document):
    """Documents whose top probability lies in (low, high]."""

    low: Share
    high: Share
    count: int = Field(ge=0)
    confidence: Share | None = Field(description="mean top probability; null in an empty bin")
    accuracy: Share | None = Field(description="share that is right; null in an empty bin")


class Calibration(Document):
    """Whether probabilities mean what they say."""

    ece: Share = Field(description="expected calibration error over 15 equal-width bins of the top probability")
    bins: tuple[Bin, ...]


class ModelReport(Document):
    """One model on the test split."""

    accuracy: Share
    f1_macro: Share = Field(description="mean F1 over the labels with support")
    f1_weighted: Share = Field(description="mean F1 weighted by support")
    f1_macro_ci95: Interval = Field(description="bias-corrected bootstrap over test documents, or over SPLIT_BY groups")
    per_label: tuple[PerLabel, ...] = Field(description="by f1, highest first")
    confusion_matrix: tuple[tuple[int, ...], ...] = Field(description="rows truth, columns prediction, as `labels`")
    calibration: Calibration
    docs_per_second: Number | None = Field(description="of the whole test split; null where it was not measured")
    latency_ms: Number | None = Field(description="median of one document at a time; null where it was not measured")
    torchscript_sha256: str | None = Field(description="of the file that was loaded; null where it is not known")


class SeedScore(Document):
    """A model that was trained with one seed, on the test split."""

    seed: int
    f1_macro: Share
    accuracy: Share
    valid_f1: Share = Field(description="macro-F1 on the validation split, by which the run's model is chosen")


class ModelSeeds(Document):
    """A model with each of its seeds."""

    scores: tuple[SeedScore, ...] = Field(description="in the order of SEEDS")
    chosen: int = Field(description="the seed of the run's model, which has the highest valid_f1")
    f1_macro_mean: Share = Field(description="over the seeds")
    f1_macro_sd: Number = Field(description="standard deviation of macro-F1 between the seeds")
    f1_macro_mean_ci95: Interval = Field(description="of the mean: counts other seeds and other test documents")


class SeedDifference(Document):
    """Two models' means over their seeds."""

    f1_difference: Number = Field(description="mean macro-F1 of a minus that of b")
    f1_difference_ci95: Interval = Field(description="counts other seeds and other test documents")
    p: Share = Field(description="two-sided, of the test that counts both")
    p_holm: Share = Field(description="corrected by Holm's method over the pairs of this list")


class Pair(Document):
    """Two models on the same documents."""

    a: str
    b: str
    both_correct: int
    only_a: int = Field(description="documents that only a has right")
    only_b: int
    both_wrong: int
    f1_difference: Number = Field(description="macro-F1 of a minus that of b")
    f1_difference_ci95: Interval = Field(description="paired bootstrap")
    mcnemar_p: Share = Field(description="McNemar's mid-p, two-sided")
    mcnemar_p_holm: Share = Field(description="corrected by Holm's method over the pairs of this list")
    verdict: str = Field(
        description=f"the better model, if mcnemar_p_holm < .05 and the interval excludes 0 on the same side; else {NO_DIFFERENCE!r}; "
        "with SEEDS the one whose mean is higher, if seeds.p_holm < .05"
    )
    seeds: SeedDifference | None = Field(None, description="of the means over seeds; null without SEEDS")


class LabelWinner(Document):
    """Who reads one label best; a description, not a test."""

    label: str
    models: tuple[str, ...] = Field(description="with the highest F1, several where they are equal")
    f1: Share
    lead: Share = Field(description="over the next model's F1")


class LabelEffect(Document):
    """One model's answers judged by two runs' labels of the same documents."""

    before: Share = Field(description="macro-F1 by the earlier run's labels")
    after: Share = Field(description="macro-F1 by this run's labels")


class PastComparison(Document):
    """This run's models against an earlier run's, on the test documents that both were scored on."""

    experiment: str
    run: int
    common_documents: int
    pairs: tuple[Pair, ...] = Field(
        description="a: `<model>` of this run, b: `run <n> <model>`; the same model where both have it, else the earlier run's best"
    )
    relabelled: int = Field(
        0, description="common documents whose label has changed since that run; the pairs are judged by the new labels"
    )
    old_labels: dict[str, LabelEffect] = Field(
        {},
        description="by model as the pairs name it: what the changed labels alone do to its score; empty where none changed",
    )


class Past(Document):
    """How this test set has been used before."""

    runs_on_this_test_set: int = Field(description="earlier runs of this experiment scored on any of these documents")
    comparisons: tuple[PastComparison, ...] = Field(description="with the latest of these runs, newest first")


class PastScore(Document):
    """A model's macro-F1 on documents that a later run tests as well, by that run's labels."""

    f1_macro: Share
    f1_macro_ci95: Interval = Field(description="as the one of `models`")


class PastRun(Document):
    """One point of the history: a run that was scored on test documents of this run."""

    run: int
    common_documents: int = Field(ge=1, description="of this run's test documents, on which it is scored here")
    models: dict[str, PastScore] = Field(description="its own models, without the baseline")
    changed: tuple[str, ...] = Field(
        (), description="what it changed from the entry before it: settings, user functions, documents, labels"
    )


class PolicyPoint(Document):
    """What a threshold would do to the test split."""

    threshold: Share
    coverage: Share = Field(description="share of the documents that would be accepted")
    precision: Share = Field(description="share of these that is right")


class LabelAcceptance(Document):
    """The documents of the test split that were given one label, at the policy's threshold."""

    label: str
    predicted: int = Field(ge=0)
    accepted: int = Field(ge=0)
    correct: int = Field(ge=0, description="of the accepted ones")


class ModelPolicy(Document):
    """A model's decision policy on the test split."""

    policy: Policy
    curve: tuple[PolicyPoint, ...] = Field(description="the highest threshold first")
    by_label: tuple[LabelAcceptance, ...] = Field(description="in the order of `labels`")
    calibration: Calibration | None = Field(
        None, description="of the confidences, which are the probabilities after the temperature; null in older reports"
    )

    @property
    def sentence(self) -> str:
        """What is accepted, or why nothing is and how many test documents it would take."""
        policy, test = self.policy, self.policy.test
        target = f"{100 * policy.target:g} %"
        if test.precision is None:
            return f"Nothing is accepted: no answer is sure enough that a precision of {target} could be shown."
        seen = f"of {test.documents:,} test documents {test.accepted:,} ({100 * test.coverage:.1f} %)"
        shown = f"{100 * test.precision:.1f} % of these are right, with 95 % confidence at least {100 * policy.lower_bound:.1f} %"
        if policy.holds:
            return f"Accepted without a person: {seen}; {shown} (target {target})."
        if policy.documents_needed is None:
            more = "more test documents would not change that"
        else:
            more = f"it would take about {policy.documents_needed:,} test documents to show it, if they were like these"
        return f"Nothing is accepted: {seen} would be, and {shown}, which is below the target of {target}; {more}."


class Forecast(Document):
    """A score after more documents."""

    now: Share = Field(description="with the documents that there are")
    forecast: Share = Field(description="with `documents`")
    interval80: Interval = Field(description="in which one training's score will lie with a probability of 80 %")


class LearningCurve(Document):
    """A model's scores by the number of documents that it was trained on."""

    points: tuple[tuple[int, Share], ...] = Field(description="documents and macro-F1 of every fit, those on all first")
    documents: int = Field(description="twice as many as there are")
    f1_macro: Forecast
    labels: dict[str, Forecast] = Field(description="F1 of the labels that the documents have by which it was judged")


class Nearness(Document):
    """How near documents are to those that models are trained on, whatever was taken for near-duplicates."""

    documents: int = Field(description="that were compared: all of the split, or 2,000 of it")
    shares: dict[str, Share] = Field(
        description="cosine of TF-IDF -> share that has a train document at least so similar"
    )


class LikelyLabel(Document):
    """Documents of one label that look like another's."""

    label: str
    likely_label: str
    documents: int = Field(ge=1)


class Suspects(Document):
    """Labels that look wrong to the baseline, which says so of documents that it was not fitted on."""

    documents: int = Field(ge=0)
    share: Share = Field(description="of all labelled documents")
    share_upper95: Share | None = Field(
        None,
        description="what the share of wrong labels is below, by one-sided 95 % bound of `share`; null in older data",
    )
    pairs: tuple[LikelyLabel, ...] = Field(description="at most 20, the most frequent first")


class UnitScores(Document):
    """One model on the units of the test split's artifacts."""

    accuracy: Share
    f1_macro: Share
    f1_weighted: Share
    f1_macro_ci95: Interval = Field(description="bias-corrected bootstrap over artifacts, or over SPLIT_BY groups")


class UnitReport(Document):
    """The same answers one level below: artifacts are the documents of this report, their units those of the models."""

    num_test: int = Field(ge=1, description="units")
    combine: str | None = Field(description="sha256 of what makes units' answers one; null: their mean")
    models: dict[str, UnitScores]


class Report(Document):
    """report.json."""

    experiment: str
    run: int = Field(ge=1)
    num_test: int = Field(ge=1)
    labels: tuple[str, ...] = Field(description="in the order of their ids")
    models: dict[str, ModelReport] = Field(
        description="the run's models in their order, then the baseline where there is one"
    )
    baseline: str | None = Field(None, description="what the baseline is; null without one, and in older reports")
    majority_share: Share | None = Field(
        None, description="share of the test documents that have the most frequent label; null in older reports"
    )
    comparison: tuple[Pair, ...] = Field(description="every pair of models of this run")
    label_winners: tuple[LabelWinner, ...] = Field(description="empty for a single model")
    disagreements: int = Field(ge=0, description="documents on which not all models give the same label")
    past: Past
    history: tuple[PastRun, ...] = Field(
        (),
        description="macro-F1 by run on these test documents, the oldest first, this run last; empty in older reports",
    )
    seeds: dict[str, ModelSeeds] = Field({}, description="by model of the run; empty without SEEDS")
    learning_curve: LearningCurve | None = Field(
        None,
        description="the baseline's, on the validation and test documents; null without one, or where its documents are too few",
    )
    model_curve: LearningCurve | None = Field(
        None,
        description="the first model's, on the test documents; null without LEARNING_CURVE, or where documents are too few",
    )
    nearest_train: dict[str, Nearness] = Field({}, description="by split, valid and test; empty without a baseline")
    suspects: Suspects | None = Field(None, description="null without a baseline, and in older reports")
    units: UnitReport | None = Field(None, description="null where artifacts are the models' documents, too")
    policy: dict[str, ModelPolicy] = Field({}, description="by model of the run; empty without AUTO_ACCEPT_PRECISION")
    summary: tuple[str, ...] = Field(description="three sentences")
    warnings: tuple[str, ...] = Field(description="what a reader should know before trusting the numbers")

    @property
    def own_models(self) -> dict[str, ModelReport]:
        """Without the baseline."""
        return {name: model for name, model in self.models.items() if name != BASELINE}

    @property
    def best_model(self) -> str:
        """Of the run's own models, the one with the highest macro-F1 on the test split."""
        return max(self.own_models, key=lambda name: self.models[name].f1_macro)

    @property
    def policies(self) -> dict[str, Policy]:
        """The decision policies by model, as deployment folders have them."""
        return {name: found.policy for name, found in self.policy.items()}

    def to_bytes(self) -> bytes:
        """As `Document.to_bytes`, but on one line where labels are many: indented, each count of a confusion matrix takes a line."""
        indent = 2 if len(self.labels) <= MANY_LABELS else None
        return (self.model_dump_json(indent=indent) + "\n").encode()


def read_report(store: Store, place: RunPlace) -> Report:
    """report.json of a run, as its manifest has it. ReportError if the run has no finished report."""
    manifest = read_manifest(store, place.inference)
    if manifest is None:
        raise ReportError(
            f"{place.experiment} run {place.number} has no finished inference report ({store.uri(place.inference)}): "
            f"finish it with docml run {place.experiment} --run {place.number}; docml runs {place.experiment} shows how far it is"
        )
    content = read_recorded(store, place.inference, manifest.file(REPORT_JSON))
    return Report.from_bytes(content, store.uri(f"{place.inference}/{REPORT_JSON}"))
