"""Training that goes on from an earlier adapter instead of from the base model.

It comes in rounds. In each round the learning rate falls as over a whole training, so that every
round ends with settled weights. After a round the student answers held-back requests, and training
ends where `done` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from policyalign_assets.distillation.adapters import STUDENT
from policyalign_assets.distillation.state import TrainState
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.checks import check_adapter
from policyalign_assets.engine.loading import LoadedModel

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Continuation:
    """`adapter`: folder of a PEFT adapter of the same shape. `asked`: the held-back requests.

    `done` reads the student's greedy answers to them, in order, and is asked after each round.
    """

    adapter: Path
    round_steps: int
    asked: Sequence[str]
    done: Callable[[list[str]], bool]

    def load(self, model: Any) -> None:
        """Gives the student of `model` the adapter's weights. Raises ValueError if they differ in
        shape or number."""
        saved = load_file(self.adapter / WEIGHTS)
        check_adapter(saved.keys(), get_peft_model_state_dict(model, adapter_name=STUDENT).keys())
        with torch.no_grad():
            try:
                set_peft_model_state_dict(model, saved, adapter_name=STUDENT)
            except RuntimeError as error:
                raise ValueError(
                    f"the adapter in {self.adapter} has another shape than the one that is "
                    f"trained: {str(error).splitlines()[0]}"
                ) from None

    def is_done(self, state: TrainState, loaded: LoadedModel) -> bool:
        """Whether the student may stop here, by its answers without a policy in its prompt."""
        prompts = [render(loaded.tokenizer, chat(text)) for text in self.asked]
        state.student.read()
        answers = state.rollouts.generate_ids(
            prompts, Sampling(state.settings.max_new_tokens, 0.0, state.settings.seed)
        )
        return self.done([answer.text for answer in answers])
