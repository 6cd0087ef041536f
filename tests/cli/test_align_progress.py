"""What `policyalign align` makes of the log of a run."""

from click.testing import CliRunner

from policyalign_assets.cli.main import main
from policyalign_assets.cli.progress import RunLog

STAGES = ("violating_instructions", "distilled_checkpoint", "benchmark_report")
PREFIX = "2026-11-29 02:05:20 +0000 - dagster - {} - __ASSET_JOB - f2ab3ead-946f - "


def line(text: str, level: str = "INFO") -> str:
    return PREFIX.format(level) + text


class Terminal:
    """Feeds lines at given seconds, and keeps what is written."""

    def __init__(self) -> None:
        self.now, self.written = 0.0, list[str]()
        self.log = RunLog(self.written.append, STAGES, lambda: self.now)

    def at(self, seconds: float, text: str, level: str = "INFO") -> None:
        self.now = seconds
        self.log.feed(line(text, level))


def test_stages_take_one_line_each_with_their_seconds():
    terminal = Terminal()
    terminal.at(1, "violating_instructions - [pipes] external process opened dagster pipes.")
    terminal.at(5, "violating_instructions - rule 1/9 C1: 40 instructions")
    terminal.at(21, "distilled_checkpoint - [pipes] external process opened dagster pipes.")
    terminal.now = 81
    terminal.log.finish()
    assert [text.split() for text in terminal.written] == [
        ["violating_instructions", "20", "s"],
        ["distilled_checkpoint", "60", "s"],
    ]


def test_long_stages_say_how_far_they_are_and_how_long_it_takes():
    terminal = Terminal()
    terminal.at(0, "distilled_checkpoint - step 1/150  loss 0.7")
    for step in range(2, 151):
        terminal.at(2 * step, f"distilled_checkpoint - step {step}/150  loss 0.1")
    # soon one, then one a minute: six minutes of training must not fill the screen
    assert [text.split()[2] for text in terminal.written] == [
        "5/150",
        "35/150",
        "65/150",
        "95/150",
        "125/150",
    ]
    assert terminal.written[2].endswith("(about 3 min left in this stage)")


def test_a_long_line_of_progress_is_cut_at_a_word():
    terminal = Terminal()
    terminal.at(0, "violating_instructions - begun")
    terminal.at(20, f"violating_instructions - rule 1/9 {'dropped: surplus ' * 12}")
    (said,) = terminal.written
    assert " … (about 3 min left" in said and len(said) < 160


def test_warnings_are_shown_and_errors_are_kept():
    terminal = Terminal()
    terminal.at(0, "violating_instructions - rule C3 is starved", "WARNING")
    assert terminal.written == ["  warning: rule C3 is starved"]
    terminal.at(1, "benchmark_report - STEP_FAILURE - Execution failed.", "ERROR")
    terminal.log.feed("dagster._core.Failure: the report has no cases. Fix: do this.")
    assert terminal.log.errors == [
        "STEP_FAILURE - Execution failed.",
        "dagster._core.Failure: the report has no cases. Fix: do this.",
    ]


def test_a_long_stack_does_not_hide_the_reason():
    terminal = Terminal()
    terminal.at(1, "violating_instructions - STEP_FAILURE - Execution failed.", "ERROR")
    terminal.log.feed("dagster._core.Failure: the model does not follow this policy.")
    terminal.log.feed("Stack Trace:")
    for number in range(40):
        terminal.log.feed(f'  File "dagster/{number}.py", line {number}, in run')
        terminal.log.feed("    return call()")
    terminal.log.feed("Error: Materialization failed.")
    assert terminal.log.errors == [
        "STEP_FAILURE - Execution failed.",
        "dagster._core.Failure: the model does not follow this policy.",
        "Error: Materialization failed.",
    ]


def test_align_needs_a_partition_and_a_folder_with_an_instance(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    run = CliRunner().invoke
    assert run(main, ["align"]).exit_code == 2
    for name in ("medical|general-conduct", "medical"):  # a partition, and a deployment
        nowhere = run(main, ["align", name])
        assert nowhere.exit_code == 1 and "policyalign init" in nowhere.output
