"""docml report and compare: what a run's inference report says, where its page lies, and two runs on the test documents that they share."""

from typing import TYPE_CHECKING

import click

from docml_assets.cli.finished_run import Choice, RunChoice, find_run
from docml_assets.terminal import console
from docml_contract.names import REPORT_HTML, RunPlace

if TYPE_CHECKING:
    from rich.table import Table

    from docml_assets.report.schema import Pair, Report

LABELS = 30  # shown in the terminal; the page has all


@click.command(name="report")
@click.argument("experiment")
@click.argument("run", type=RunChoice())
def report(experiment: str, run: Choice) -> None:
    """Show the summary of run RUN (a number, or `champion`) of EXPERIMENT, and where its report.html lies."""
    from docml_assets.deployment import Deployment
    from docml_assets.report.schema import read_report

    deployment = Deployment.current()
    store = deployment.store
    place = RunPlace(experiment, find_run(deployment, experiment, run, None)[0])
    show(read_report(store, place), store.uri(f"{place.inference}/{REPORT_HTML}"))


def show(report: "Report", page: str) -> None:
    """Print sentences, tables and the page's place."""
    from rich.text import Text

    terminal = console()
    terminal.print(Text(f"{report.experiment} run {report.run}", style="bold"))
    for sentence in (*report.summary, *report.warnings):
        terminal.print(Text(sentence))
    terminal.print(_scores(report), *([_seeds(report)] if report.seeds else []), _labels(report))
    if report.comparison:
        terminal.print(pair_table("Comparison", report.comparison))
    for past in report.past.comparisons:
        title = f"Against run {past.run}, on {past.common_documents} common test documents"
        terminal.print(pair_table(title, past.pairs))
    terminal.print(Text.assemble("\nReport: ", page), soft_wrap=True)


def pair_table(title: str, pairs: "tuple[Pair, ...]") -> "Table":
    """Pairs of models with their verdicts, in 80 columns where the names are short. Trained with several seeds, the means over these."""
    from rich.text import Text

    seeded = any(pair.seeds for pair in pairs)
    test = "means over seeds; p: t test" if seeded else "p: McNemar's"
    table = _table(f"{title} ({test}, Holm-corrected)", left=("a", "b"), right=("only a/b", "F1 of a - b (95 %)", "p"))
    table.add_column("verdict")
    for pair in pairs:
        found, p = (pair.seeds, pair.seeds.p_holm) if pair.seeds else (pair, pair.mcnemar_p_holm)
        low, high = found.f1_difference_ci95
        won = pair.verdict in (pair.a, pair.b)
        table.add_row(
            Text(pair.a),
            Text(pair.b),
            f"{pair.only_a}/{pair.only_b}",
            f"{found.f1_difference:+.3f} ({low:+.3f} to {high:+.3f})",
            "<0.001" if p < 0.001 else f"{p:.3f}",
            Text(f"{pair.verdict} is better" if won else pair.verdict, "green" if won else ""),
        )
    return table


def _table(title: str, *, left: "tuple[str, ...]", right: "tuple[str, ...]") -> "Table":
    """An empty table whose names fold rather than being cut: they are what the reader looks for."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(Text(name), overflow="fold")
    for name in right:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _scores(report: "Report") -> "Table":
    from rich.text import Text

    columns = ("macro-F1 (95 %)", "accuracy", "ECE", "docs/s", "one alone")
    table = _table(f"Scores on {report.num_test} test documents", left=("model",), right=columns)
    for name, model in report.models.items():
        low, high = model.f1_macro_ci95
        table.add_row(
            Text(name),
            f"{model.f1_macro:.3f} ({low:.3f} to {high:.3f})",
            f"{100 * model.accuracy:.1f} %",
            f"{model.calibration.ece:.3f}",
            "–" if model.docs_per_second is None else f"{model.docs_per_second:,.1f}",
            "–" if model.latency_ms is None else f"{model.latency_ms:.1f} ms",
        )
    return table


def _seeds(report: "Report") -> "Table":
    from rich.text import Text

    columns = ("mean macro-F1 (95 %)", "std", "lowest", "highest", "chosen seed")
    table = _table("Over the seeds", left=("model",), right=columns)
    for name, found in report.seeds.items():
        low, high = found.f1_macro_mean_ci95
        scores = [score.f1_macro for score in found.scores]
        mean = f"{found.f1_macro_mean:.3f} ({low:.3f} to {high:.3f})"
        rest = (f"{value:.3f}" for value in (found.f1_macro_sd, min(scores), max(scores)))
        table.add_row(Text(name), mean, *rest, str(found.chosen))
    return table


def _labels(report: "Report") -> "Table":
    from rich.text import Text

    table = _table("F1 by label", left=("label",), right=(*report.models, "test documents"))
    f1 = {name: {row.label: row.f1 for row in model.per_label} for name, model in report.models.items()}
    rows = next(iter(report.models.values())).per_label
    shown = [*rows[: LABELS // 2], *rows[-LABELS // 2 :]] if len(rows) > LABELS else rows
    for index, row in enumerate(shown):
        if len(rows) > LABELS and index == LABELS // 2:
            table.add_section()
        scores = [f"{f1[name][row.label]:.3f}" if row.support else "–" for name in report.models]
        table.add_row(Text(row.label), *scores, str(row.support))
    if len(rows) > LABELS:
        table.caption = f"the {LABELS // 2} best and worst of {len(rows)} labels"
    return table


@click.command(name="compare")
@click.argument("experiment_a")
@click.argument("run_a", type=click.IntRange(min=1))
@click.argument("experiment_b")
@click.argument("run_b", type=click.IntRange(min=1))
def compare(experiment_a: str, run_a: int, experiment_b: str, run_b: int) -> None:
    """Compare every model of run RUN_A of EXPERIMENT_A with every model of run RUN_B of EXPERIMENT_B.

    Only the documents that both runs were tested on count, found by their GUID.
    """
    from rich.text import Text

    from docml_assets.deployment import Deployment
    from docml_assets.report.comparison import compare_runs, read_run
    from docml_assets.report.summary import NOT_OTHER_SEEDS

    store = Deployment.current().store
    compared = compare_runs(
        read_run(store, RunPlace(experiment_a, run_a)), read_run(store, RunPlace(experiment_b, run_b))
    )
    terminal = console()
    sentences = [
        f"{compared.common_documents} common test documents; {compared.only_a_documents} only of {compared.a}, "
        f"{compared.only_b_documents} only of {compared.b}.",
        f"Macro-F1 on them: {', '.join(f'{name} {value:.3f}' for name, value in compared.f1_macro.items())}.",
    ]
    if compared.relabelled:
        sentences.append(
            f"{compared.relabelled} of them have another label in {compared.b}; the labels of {compared.a} count."
        )
    for sentence in sentences:
        terminal.print(Text(sentence))
    terminal.print(pair_table(f"{compared.a} against {compared.b}", compared.comparison.pairs))
    terminal.print(Text(f"{NOT_OTHER_SEEDS[0].upper()}{NOT_OTHER_SEEDS[1:]}."))
