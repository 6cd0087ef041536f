"""`policyalign ask`: what alignment did, felt with a question of one's own."""

import json
import os

import click

from policyalign_assets.cli.options import json_option
from policyalign_assets.runtime.results import stored_record

ARMS = ("the model", "the model, policy in its prompt", "the aligned model")


@click.command()
@click.argument("partition")
@click.argument("question")
@click.option(
    "--max-tokens", type=click.IntRange(1, 4096), default=128, show_default=True, help="At most."
)
@json_option("Print one JSON object: question, and the answer of each arm.")
def ask(partition: str, question: str, max_tokens: int, as_json: bool) -> None:
    """Answer QUESTION with the model, with the policy in its prompt, and with the aligned model."""
    from policyalign_assets.engine.base import Sampling, chat
    from policyalign_assets.engine.loading import load_model
    from policyalign_assets.files import location
    from policyalign_assets.policy import PolicyDocument
    from policyalign_assets.records import Checkpoint
    from policyalign_assets.report.formatting import visible
    from policyalign_assets.settings import load_settings
    from policyalign_assets.stages.aligned_engine import base_and_aligned

    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    policy = stored_record(data, "policy_document", partition, PolicyDocument)
    checkpoint = stored_record(data, "distilled_checkpoint", partition, Checkpoint)
    settings = load_settings().model
    sampling = Sampling(max_tokens)
    base = load_model(settings)
    with base_and_aligned(settings, base, [checkpoint], data) as (of_base, (of_aligned,)):
        engine = of_base()
        chats = [chat(question), chat(question, policy.prompt_text)]
        answers = [g.text for g in engine.generate(chats, sampling)]
        answers += [g.text for g in of_aligned().generate([chat(question)], sampling)]
    if as_json:
        made = {"question": question, "answers": dict(zip(ARMS, answers, strict=True))}
        click.echo(json.dumps(made, indent=1))
        return
    for arm, answer in zip(ARMS, answers, strict=True):
        click.secho(f"{arm}:", bold=True)
        click.echo(visible(answer).strip() + "\n")
