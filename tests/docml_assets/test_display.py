"""What docml run shows, on a terminal and elsewhere."""

import io

from docml_assets.display import (
    MOST_BARS,
    Display,
    PlainDisplay,
    TerminalDisplay,
    display,
    epoch_text,
    log_line,
    shown_on,
)

EVENT = {
    "epoch": 2,
    "train_loss": 0.5,
    "valid_loss": 0.4,
    "valid_loss_epoch": 0.6,
    "valid_f1": 0.9,
    "valid_f1_epoch": 0.8,
}


def test_an_epoch_shows_its_own_scores_and_not_the_best_so_far() -> None:
    assert epoch_text("small", EVENT) == "small: epoch 2: train loss 0.500, valid loss 0.600, macro-F1 0.800"


def test_lines_elsewhere() -> None:
    stream = io.StringIO()
    with PlainDisplay(stream, verbose=False) as display:
        display.started("reconciled_data")
        for done in (0, 1, 2, 3, 3):
            display.progressed("reconciled_data", "copied", done, 3)
        display.job_line("reconciled_data", None, "not shown")
        display.said("reconciled_data", "copying")
        display.epoch("best_torchscript_model", None, EVENT)
        display.finished("reconciled_data", "done")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "reconciled_data: copied: 0 of 3"
    assert lines.count("reconciled_data: copied: 3 of 3") == 1
    assert "reconciled_data: copying" in lines
    assert lines[-1].startswith("reconciled_data: done (")
    assert "\x1b" not in stream.getvalue()


def test_verbose_shows_the_jobs_lines() -> None:
    stream = io.StringIO()
    PlainDisplay(stream, verbose=True).job_line("a", "small", "loading")
    assert stream.getvalue() == "a:   | [small] loading\n"


def test_a_terminal_keeps_what_was_said() -> None:
    display = TerminalDisplay(verbose=True)
    with display, display._console.capture() as capture:
        display.started("encoded_splits")
        display.progressed("encoded_splits", "encoding", 1, 2)
        display.job_line("encoded_splits", "small", "[loading]")
        display.epoch("encoded_splits", "small", EVENT)
        display.finished("encoded_splits", "split [in three]")
    said = capture.get()
    assert "[small] [loading]" in said
    assert "split [in three]" in said
    assert not display._tasks


def test_a_jobs_output_takes_a_line_and_its_counts_few_bars() -> None:
    stream = io.StringIO()
    PlainDisplay(stream, verbose=True).job_line("a", None, "one\ntwo\n" + "x" * 3_000)
    assert stream.getvalue() == f"a:   | one\\ntwo\\n{'x' * 1_992} … (1,008 characters more)\n"
    assert len(log_line("m" * 1_000_000, "one")) < 2_100
    display = TerminalDisplay(verbose=True)
    with display:
        for number in range(1_000):
            display.progressed("encoded_splits", f"kind {number}", number, None)
        assert len(display._tasks) == MOST_BARS + 1
        display.finished("encoded_splits", "done")
    assert not display._tasks


def test_a_display_is_in_place_for_a_while() -> None:
    mine = Display()
    assert display() is not mine
    with shown_on(mine):
        assert display() is mine
    assert display() is not mine
