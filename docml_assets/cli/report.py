"""docml report and compare: what a run's inference report says, where its page lies, and two runs on the test documents that they share."""

from typing import TYPE_CHECKING

import click

from docml_assets.cli.arguments import Choice, RunChoice, complete_experiment, complete_run
from docml_assets.cli.finished_run import find_run
from docml_assets.numbers import number, p_value, score, share, signed
from docml_assets.terminal import TableColumn, console, print_table
from docml_contract.names import REPORT_HTML, RunPlace

if TYPE_CHECKING:
    from docml_assets.report.schema import Pair, Report

LABELS = 30  # shown in the terminal; the page has all


@click.command(name="report")
@click.argument("experiment", shell_complete=complete_experiment)
@click.argument("run", type=RunChoice(), shell_complete=complete_run)
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
    _print_scores(report)
    if report.seeds:
        _print_seeds(report)
    _print_labels(report)
    if report.units is not None:
        scores = ", ".join(f"{name} {found.f1_macro:.3f}" for name, found in report.units.models.items())
        terminal.print(Text(f"Units: macro-F1 on the {report.units.num_test:,} parts of these documents: {scores}"))
    if report.comparison:
        print_pairs("Comparison", report.comparison)
    for past in report.past.comparisons:
        print_pairs(f"Against run {past.run}, on {past.common_documents:,} common test documents", past.pairs)
    terminal.print(Text.assemble("\nReport: ", page), soft_wrap=True)


def print_pairs(title: str, pairs: "tuple[Pair, ...]") -> None:
    """Pairs of models with their verdicts, in 80 columns where the names are short. Trained with several seeds, the means over these."""
    from rich.text import Text

    seeded = any(pair.seeds for pair in pairs)
    test = "means over seeds; p: with other seeds" if seeded else "p: McNemar's"

    columns = (
        TableColumn("a", shortened=True),
        TableColumn("b", shortened=True),
        TableColumn("only a/b", right=True, dropped=1),
        TableColumn("F1 of a \N{MINUS SIGN} b (95 %)", right=True),
        TableColumn("p", right=True, dropped=2),
        TableColumn("verdict"),
    )
    rows = []
    for pair in pairs:
        found, p = (pair.seeds, pair.seeds.p_holm) if pair.seeds else (pair, pair.mcnemar_p_holm)
        low, high = found.f1_difference_ci95
        won = pair.verdict in (pair.a, pair.b)
        rows.append(
            (
                pair.a,
                pair.b,
                f"{pair.only_a}/{pair.only_b}",
                f"{signed(found.f1_difference)} ({signed(low)} to {signed(high)})",
                p_value(p),
                Text(f"{pair.verdict} is better" if won else pair.verdict, "green" if won else ""),
            )
        )
    print_table(columns, rows, title=f"{title} ({test}, Holm-corrected)")


def _print_scores(report: "Report") -> None:
    columns = (
        TableColumn("model", shortened=True),
        TableColumn("macro-F1 (95 %)", right=True),
        TableColumn("accuracy", right=True),
        TableColumn("ECE", right=True, dropped=3),
        TableColumn("docs/s", right=True, dropped=2),
        TableColumn("one alone", right=True, dropped=1),
    )
    rows = [
        (
            name,
            score(model.f1_macro, model.f1_macro_ci95),
            share(model.accuracy),
            number(model.calibration.ece),
            number(model.docs_per_second, 1),
            number(model.latency_ms, 1) + (" ms" if model.latency_ms is not None else ""),
        )
        for name, model in report.models.items()
    ]
    print_table(columns, rows, title=f"Scores on {report.num_test:,} test documents")


def _print_seeds(report: "Report") -> None:
    columns = (
        TableColumn("model", shortened=True),
        TableColumn("mean macro-F1 (95 %)", right=True),
        TableColumn("std", right=True),
        TableColumn("lowest", right=True, dropped=2),
        TableColumn("highest", right=True, dropped=3),
        TableColumn("chosen seed", right=True, dropped=1),
    )
    rows = []
    for name, found in report.seeds.items():
        scores = [each.f1_macro for each in found.scores]
        mean = score(found.f1_macro_mean, found.f1_macro_mean_ci95)
        rest = (number(value) for value in (found.f1_macro_sd, min(scores), max(scores)))
        rows.append((name, mean, *rest, str(found.chosen)))
    print_table(columns, rows, title="Over the seeds")


def _print_labels(report: "Report") -> None:
    columns = (
        TableColumn("label", shortened=True),
        *(TableColumn(name, right=True) for name in report.models),
        TableColumn("test documents", right=True, dropped=1),
    )
    f1 = {name: {row.label: row.f1 for row in model.per_label} for name, model in report.models.items()}
    rows = next(iter(report.models.values())).per_label
    many = len(rows) > LABELS
    shown = [*rows[: LABELS // 2], *rows[-LABELS // 2 :]] if many else rows
    cells = [
        (row.label, *(number(f1[name][row.label]) if row.support else "–" for name in report.models), str(row.support))
        for row in shown
    ]
    if many:
        cells.insert(LABELS // 2, ("…", *("" for _ in columns[1:])))
    note = f"the {LABELS // 2} best and worst of {len(rows)} labels" if many else ""
    print_table(columns, cells, title="F1 by label", note=note)


@click.command(name="compare")
@click.argument("experiment_a", shell_complete=complete_experiment)
@click.argument("run_a", type=click.IntRange(min=1), shell_complete=complete_run)
@click.argument("experiment_b", shell_complete=complete_experiment)
@click.argument("run_b", type=click.IntRange(min=1), shell_complete=complete_run)
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
        f"Macro-F1 on them: {', '.join(f'{name} {number(value)}' for name, value in compared.f1_macro.items())}.",
    ]
    if compared.relabelled:
        sentences.append(
            f"{compared.relabelled} of them have another label in {compared.b}; the labels of {compared.a} count."
        )
    for sentence in sentences:
        terminal.print(Text(sentence))
    print_pairs(f"{compared.a} against {compared.b}", compared.comparison.pairs)
    terminal.print(Text(f"{NOT_OTHER_SEEDS[0].upper()}{NOT_OTHER_SEEDS[1:]}."))
