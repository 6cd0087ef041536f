"""The entry point of `policyalign`, and the table of its commands.

To add a command: write `policyalign_assets/cli/NAME.py` with a click command, and add its row to
`COMMANDS`.
Its module is imported only when the command runs, so `policyalign --help` stays fast.

Exit codes, for continuous integration: 0 all is well, 1 problems were found, 2 wrong usage.
"""

import importlib
from typing import NamedTuple

import click

from policyalign_assets.cli.project import use_project_above


class Entry(NamedTuple):
    """Where a command is, as "module:attribute", and the line that `policyalign --help` shows."""

    target: str
    summary: str


COMMANDS: dict[str, Entry] = {
    "align": Entry(
        "policyalign_assets.cli.align:align", "Align a model with a policy, up to the report."
    ),
    "approve": Entry("policyalign_assets.cli.ledger:approve", "Approve a drafted release."),
    "ask": Entry(
        "policyalign_assets.cli.ask:ask",
        "Answer a question with the model, with the policy, and with the aligned model.",
    ),
    "attest": Entry(
        "policyalign_assets.cli.attest:attest", "Say which model answers at an endpoint."
    ),
    "decide": Entry(
        "policyalign_assets.cli.decide:decide", "Record a person's decision on a report."
    ),
    "diff": Entry("policyalign_assets.cli.diff:diff", "Say what changed between two reports."),
    "doctor": Entry(
        "policyalign_assets.cli.doctor:doctor",
        "Examine the configured model, judge, generator and files.",
    ),
    "export": Entry(
        "policyalign_assets.cli.export:export",
        "Write the released model merged or as GGUF, if it passes the gates again.",
    ),
    "import": Entry(
        "policyalign_assets.cli.import_policy:import_policy", "Make a draft policy of a document."
    ),
    "init": Entry(
        "policyalign_assets.cli.init:init", "Write the files that a folder of one's own needs."
    ),
    "keys": Entry("policyalign_assets.cli.keys:keys", "Make the keys that sign releases."),
    "papers": Entry(
        "policyalign_assets.cli.papers:papers",
        "Write model card, ML-BOM, Annex IV and OSCAL of a release.",
    ),
    "publish": Entry("policyalign_assets.cli.ledger:publish", "Declare an approved release."),
    "release": Entry(
        "policyalign_assets.cli.release:release",
        "Draft a signed release of a partition or a deployment.",
    ),
    "report": Entry(
        "policyalign_assets.cli.report:report", "Print the report of a partition or a deployment."
    ),
    "revoke": Entry("policyalign_assets.cli.ledger:revoke", "Revoke a release, with a reason."),
    "serve": Entry("policyalign_assets.cli.serve:serve", "Serve a verified release with vLLM."),
    "status": Entry("policyalign_assets.cli.status:status", "Say what is out of date, and why."),
    "study": Entry(
        "policyalign_assets.cli.study:study",
        "Compare the method and its parts with what a team would do instead.",
    ),
    "verify": Entry(
        "policyalign_assets.cli.verify:verify_command",
        "Check a release: signature, files, weights, policy, gates, approval.",
    ),
    "lint": Entry(
        "policyalign_assets.cli.lint:lint",
        "Show how each rule of a policy is read, and all faults.",
    ),
}


class LazyGroup(click.Group):
    """A group of commands that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in sorted(COMMANDS)])

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command. Errors of this package name their fix: no traceback is shown."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not type(error).__module__.startswith("policyalign_assets."):
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="policyalign-assets")
def main() -> None:
    """Keeps language models aligned with written safety policies.

    \b
    Exit codes: 0 all is well, 1 problems were found, 2 wrong usage.
    """
    use_project_above()
