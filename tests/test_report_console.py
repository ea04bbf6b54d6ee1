"""The terminal: summary, plan, and progress that never touches standard output."""

import io
from typing import Any

import pytest
import report_content as made
from rich.console import Console

from normwise.report import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(what: Any, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(what)
    return stream.getvalue()


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    "variant", ["content", "tie", "undecided", "diverged", "hostile", "bare", "unfinished", "regression"]
)
def test_the_summary_starts_with_the_verdict(variant: str) -> None:
    content = getattr(made, variant)()
    assert one_line(shown(console.summary(content))).startswith(content["verdict"]["statement"])


def test_the_summary_has_a_line_per_arm_and_batch_size() -> None:
    lines = shown(console.summary(made.content())).splitlines()
    rows = [line.split() for line in lines if line.split()[:1] == ["layer"]]
    assert rows == [
        ["layer", "0.05", "16", "96.9", "-1.0", "(-1.7", "to", "-0.3)", "open"],
        ["layer", "0.05", "16", "96.9", "-1.2", "(-1.5", "to", "-0.9)", "worse"],
    ]
    assert max(map(len, lines)) <= 80


def test_the_summary_ends_with_the_next_step_and_the_report() -> None:
    text = shown(console.summary(made.content()))
    assert 'next: nw.swap(model, "batch")  # batch size 64, learning rate 0.15\n' in text
    assert text.endswith("report: runs/digits/report.html\n")


def test_the_summary_counts_failures() -> None:
    assert "unstable, 2 failed" in shown(console.summary(made.diverged()), width=100)


def test_the_summary_of_an_unfinished_run_says_how_to_go_on() -> None:
    text = one_line(shown(console.summary(made.unfinished())))
    assert "interrupted; continue with: normwise compare digits" in text
    assert "next:" not in text


def test_user_text_is_no_markup_of_the_terminal() -> None:
    content = made.content()
    content["verdict"]["statement"] = "Take [bold]this[/bold] [link=x]."
    assert shown(console.summary(content)).startswith("Take [bold]this[/bold] [link=x].")


def test_the_plan_says_arms_trials_and_minutes() -> None:
    text = one_line(shown(console.plan(made.content()), width=200))
    assert "task: digits, cnn, 12 epochs" in text
    assert "group:4 = group:size=4" in text
    assert "left out: keep: the built-in network has no norm of its own" in text
    assert "5 learning rates x 2 seeds, then looks at 8, 16, 24 seeds, then a check at twice the length" in text
    # 6 arms x 2 batch sizes x (2 seeds x (5 short + 3 full) + 8) trials
    assert "288 trials up to the first look" in text
    # 12 cells x (2 x (5 / 4 + 3) + 8) lengths x 0.5 s on 2 workers, and 120 core-seconds after that
    assert "about 50 s; 1 min 50 s at most on 2 workers; budget 4m" in text


def test_the_plan_of_a_budget_in_trials_gives_no_minutes() -> None:
    content = made.content()
    content["config"]["budget"] = "200trials"
    content["config"]["plan"]["length_check"] = False
    text = one_line(shown(console.plan(content), width=200))
    assert "first look, budget 200trials" in text
    assert "no length check" in text


def test_announce_prints_the_plan_to_the_stream_given(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    console.announce(made.content()["config"], stream)
    assert "batch sizes: 8, 64" in stream.getvalue()
    assert capsys.readouterr().out == ""


def test_without_a_terminal_lines_come_at_most_once_an_interval() -> None:
    stream = io.StringIO()
    with console.Progress(stream=stream, interval=3600) as progress:
        for done in range(5):
            progress.update(done, 40, None, "racing", ["batch leads"], running=2)
    assert stream.getvalue() == "racing: 0 of 40 trials, 2 running; batch leads\n"


def test_lines_go_on_after_the_interval() -> None:
    stream = io.StringIO()
    with console.Progress(stream=stream, interval=0) as progress:
        progress.update(1, 40, 95.0, "tuning")
        progress.update(2, 40, 90.0, "tuning")
    first, second = stream.getvalue().splitlines()
    assert first == "tuning: 1 of 40 trials, 0 running, about 1 min 35 s left"
    assert second.startswith("tuning: 2 of 40")


def test_due_says_whether_an_update_would_be_shown() -> None:
    progress = console.Progress(stream=io.StringIO(), interval=3600)
    assert progress.due()
    progress.update(1, 2)
    assert not progress.due()


def test_a_terminal_shows_stage_bar_and_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with console.Progress(stream=stream) as progress:
        progress.update(10, 40, 30.0, "racing", ["batch size 8: [bold] leads"], 2)
    text = stream.getvalue()
    assert "racing" in text
    assert "10 of 40 trials, 2 running, about 30 s left" in text
    assert "batch size 8: [bold] leads" in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_never_prints_to_standard_output(stream: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with console.Progress(stream=stream()) as progress:
        progress.update(1, 2, None, "racing", ["batch"], 1)
        print("for --json")
    assert capsys.readouterr() == ("for --json\n", "")


def test_progress_writes_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Progress() as progress:
        progress.update(1, 2, None, "racing")
    assert capsys.readouterr() == ("", "racing: 1 of 2 trials, 0 running\n")


def test_an_exception_ends_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def interrupted() -> None:
        with console.Progress(stream=stream) as progress:
            progress.update(1, 2, None, "racing")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    shown_cursor, hidden_cursor = "\x1b[?25h", "\x1b[?25l"
    assert stream.getvalue().rfind(shown_cursor) > stream.getvalue().rfind(hidden_cursor) >= 0
