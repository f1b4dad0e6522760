"""The exact log-probability of every title for every record of careers, with each career read once.

A title's probability is the product over its tokens, the terminator's included (design: no title is then the
beginning of another, so the titles' probabilities cannot sum to more than one).

Legend: B careers, R records of each, L tokens of the longest, J titles, M inner nodes and E edges of their trie, W
nodes of one of its levels, V tokens of the vocabulary.
"""

import math

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from labor_llm.errors import RunError
from labor_llm.language.tree_attention import TreeState, attending_to_tree
from labor_llm.language.trie import TitleTrie

TOLERANCE, ROUGH_TOLERANCE = 1e-3, 0.25
"""Nats by which the tree and the plain way may differ in the self-check, in float32 and in bfloat16."""
LOGITS_PER_PASS = 2**28
"""Logits that one forward pass may give: a gigabyte in float32."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ExactScoring:
    """Every title of the choice set, exactly."""

    name: str = "exact"
    max_tokens: int = Field(default=4096, ge=1)
    """Tokens in one forward pass over careers or over a level of their trees; bounds the memory."""


def tokens_per_pass(scoring: ExactScoring, vocabulary: int) -> int:
    """The budget of one forward pass, smaller where the vocabulary is large."""
    return min(scoring.max_tokens, max(1, LOGITS_PER_PASS // vocabulary))


class TitleScorer:
    """Scores careers with one language model and one trie of titles."""

    def __init__(self, model: PreTrainedModel, trie: TitleTrie, max_tokens: int) -> None:
        self.model, self.trie = model, trie
        device = model.device
        self.levels = [
            (
                level,
                torch.as_tensor(trie.tokens_M[level], device=device),
                torch.as_tensor(trie.paths(level), device=device),
            )
            for level in trie.levels
        ]
        self.records_per_pass = max(1, max_tokens // trie.width)
        self.edges = [
            (
                torch.as_tensor(edges, device=device),
                torch.as_tensor(tokens, device=device),
                torch.as_tensor(parents, device=device),
            )
            for edges, tokens, parents in trie.edges_by_level()
        ]
        self.title_edges_JD = torch.as_tensor(trie.title_edges_JD, device=device)

    @torch.no_grad()
    def score(self, ids_BL: Tensor, prompt_ends_BR: Tensor) -> Tensor:
        """Log-probabilities before normalisation, shape (B, R, J), float32.

        Careers are padded on the right with any token, records with any place; what is read at a padded record
        means nothing. The tree of each record attends to its career before the record's title, nothing later.
        """
        past, root_logits_BRV = self._read_careers(ids_BL, prompt_ends_BR)
        passes = max(1, self.records_per_pass // len(ids_BL))
        scores = [
            self._score_records(past, ends, logits)
            for ends, logits in zip(prompt_ends_BR.split(passes, 1), root_logits_BRV.split(passes, 1), strict=True)
        ]
        return torch.cat(scores, dim=1)

    def _read_careers(self, ids_BL: Tensor, prompt_ends_BR: Tensor) -> tuple[DynamicCache, Tensor]:
        """Keys and values of the careers, and the logits at the end of every prompt, (B, R, V)."""
        past = DynamicCache()
        last = int(prompt_ends_BR.max())
        wanted, places = torch.unique(prompt_ends_BR - 1, return_inverse=True)
        logits = self.model(ids_BL[:, :last], past_key_values=past, use_cache=True, logits_to_keep=wanted).logits
        careers = torch.arange(len(ids_BL), device=ids_BL.device)[:, None]
        return past, logits[careers, places].float()

    def _score_records(self, past: DynamicCache, prompt_ends_BR: Tensor, root_logits_BRV: Tensor) -> Tensor:
        """Scores of some records of the careers in ``past``, shape (B, R, J)."""
        state = TreeState(past, prompt_ends_BR, len(self.trie.tokens_M))
        edges_BRE = root_logits_BRV.new_zeros(*prompt_ends_BR.shape, len(self.trie.edge_tokens_E) + 1)
        logits = root_logits_BRV[:, :, None]
        with attending_to_tree(self.model, state):
            for depth, (edges, tokens, parents) in enumerate(self.edges):
                if depth:
                    logits = self._level_logits(state, depth, prompt_ends_BR)
                norms = logits.logsumexp(-1)
                edges_BRE[:, :, edges] = logits[:, :, parents, tokens] - norms[:, :, parents]
        return edges_BRE[:, :, self.title_edges_JD].sum(-1)

    def _level_logits(self, state: TreeState, depth: int, prompt_ends_BR: Tensor) -> Tensor:
        """Logits after every node of a level of every record's tree, shape (B, R, W, V), float32."""
        level, tokens_W, paths_WC = self.levels[depth - 1]
        state.enter(level, paths_WC)
        careers, records = prompt_ends_BR.shape
        ids = tokens_W.expand(careers, records, -1).reshape(careers, -1)
        positions = (prompt_ends_BR - 1 + depth)[..., None].expand(-1, -1, len(tokens_W)).reshape(careers, -1)
        logits = self.model(ids, position_ids=positions, use_cache=False).logits
        return logits.view(careers, records, len(tokens_W), -1).float()


def plain_log_prob(model: PreTrainedModel, ids_L: Tensor, prompt_end: int, title: list[int]) -> Tensor:
    """The log-probability of one title after one prompt, in one forward pass over both: the usual, slow way."""
    title_ids = torch.tensor(title, device=ids_L.device)
    ids = torch.cat([ids_L[:prompt_end], title_ids])
    log_probs_LV = model(ids[None], use_cache=False).logits[0].float().log_softmax(-1)
    return log_probs_LV[prompt_end - 1 : -1].gather(-1, title_ids[:, None]).sum()


@torch.no_grad()
def self_check(scorer: TitleScorer, ids_BL: Tensor, prompt_ends_BR: Tensor, records_B: Tensor) -> None:
    """Compare some titles at the first, a middle and the last record of each career with the plain way.

    Raises
    ------
    RunError
        If they differ: the model does not take the tree's attention, and its scores would be wrong. Or if they
        are not numbers.
    """
    scores_BRJ = scorer.score(ids_BL, prompt_ends_BR)
    exact = scorer.model.dtype == torch.float32 and not torch.is_autocast_enabled(ids_BL.device.type)
    tolerance = TOLERANCE if exact else ROUGH_TOLERANCE
    lengths_J = (scorer.title_edges_JD < len(scorer.trie.edge_tokens_E)).sum(-1)
    places = {int(lengths_J.argmax()), *range(0, len(lengths_J), max(1, len(lengths_J) // 4))}
    for career, count in enumerate(records_B.tolist()):
        for record in {0, count // 2, count - 1}:
            end = int(prompt_ends_BR[career, record])
            for place in places:
                tree = float(scores_BRJ[career, record, place])
                plain = float(plain_log_prob(scorer.model, ids_BL[career], end, scorer.trie.title(place)))
                if not math.isfinite(plain):
                    raise RunError(
                        f"the model gives a title a log-probability of {plain}: its weights are broken."
                    )
                if not abs(tree - plain) <= tolerance:
                    raise RunError(
                        f"scoring over the token tree gives {tree:.4f} nats for a title where the plain way gives "
                        f"{plain:.4f}: {type(scorer.model).__name__} does not read its attention the usual way of "
                        "transformers. Use another architecture: Llama, Qwen, Mistral, GPT-2 or GPT-NeoX."
                    )
