"""What a language model knows when it is about to write a title: its last layer's state at the end of the prompt.

Legend: N records, T tokens of a batch, E numbers of a state.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from labor_llm.language.attention import PACKED, attending
from labor_llm.language.batches import ScoringBatches
from labor_llm.language.checks import check_packing
from labor_llm.language.finetune import TrainerSettings
from labor_llm.language.tokens import EncodedCareers
from labor_llm.language.trie import NONE
from labor_llm.progress import counting


def device_of(settings: TrainerSettings) -> torch.device:
    """Where the settings let a model compute."""
    return torch.device("cuda" if settings.on_gpu else "cpu")


@torch.no_grad()
def prompt_states(
    model: PreTrainedModel, encoded: EncodedCareers, settings: TrainerSettings, max_tokens: int, progress: bool
) -> NDArray[np.float32]:
    """One forward pass over each career gives the states of all its records, in their order, shape (N, E).

    A record's state is computed from the tokens before its title, from nothing later.
    """
    model.to(device_of(settings)).eval()
    in_float32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    layers = getattr(model, "get_base_model", lambda: model)().base_model
    batches = ScoringBatches(encoded, np.full(len(encoded.prompt_ends), NONE), max_tokens)
    states = []
    with torch.autocast(model.device.type, torch.bfloat16, enabled=not in_float32):
        check_packing(model, encoded)
        with attending(model, PACKED), counting("batches of careers read", progress) as told:
            for place in range(len(batches)):
                careers = batches[place]["careers"].to(model.device)
                states_TE = layers(
                    careers.ids_T[None],
                    position_ids=careers.positions_T[None],
                    use_cache=False,
                    career_starts=careers.career_starts,
                ).last_hidden_state[0]
                states.append(states_TE[careers.prompt_ends_Q - 1].float().cpu().numpy())
                told(place + 1, len(batches))
    return np.concatenate(states)
