"""docml compare: two runs on the test documents that they share."""

import click

from docml_assets.cli.terminal import console
from docml_contract.names import RunPlace


@click.command(name="compare")
@click.argument("experiment_a")
@click.argument("run_a", type=click.IntRange(min=1))
@click.argument("experiment_b")
@click.argument("run_b", type=click.IntRange(min=1))
def command(experiment_a: str, run_a: int, experiment_b: str, run_b: int) -> None:
    """Compare every model of run RUN_A of EXPERIMENT_A with every model of run RUN_B of EXPERIMENT_B.

    Only the documents that both runs were tested on count, found by their GUID.
    """
    from rich.text import Text

    from docml_assets.cli.report import pair_table
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
