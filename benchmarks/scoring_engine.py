"""Our scoring of one career at a time, and the arithmetic that it cannot do without.

Legend: Q records of a career, T its tokens.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from labor_llm.language.scoring import ExactScoring, PackedCareers, Scores, tokens_per_pass
from labor_llm.language.title_scorer import TitleScorer
from labor_llm.language.trie import TitleTrie


class Engine:
    """Our own scoring, with the budget of tokens that a user gets who sets none."""

    def __init__(self, model: PreTrainedModel, titles: Sequence[tuple[int, ...]], tolerance: float = 0.0) -> None:
        self.model, self.trie = model, TitleTrie.of(titles)
        budget = tokens_per_pass(ExactScoring(), model.config.vocab_size)
        self.scorer = TitleScorer(model, self.trie, budget, tolerance)

    def score(self, career: PackedCareers) -> Scores:
        """Scores of all records, in the computer's own memory."""
        scores = self.scorer.score(career.to(self.model.device))
        return Scores(scores.raw_QJ.cpu(), scores.unexpanded_Q.cpu())


def prompts(career: PackedCareers) -> list[list[int]]:
    """Per record of a single career, all tokens before its title."""
    ids = career.ids_T.tolist()
    return [ids[:end] for end in career.prompt_ends_Q.tolist()]


def exact_flops(model: PreTrainedModel, trie: TitleTrie, prompt_ends_Q: Tensor) -> int:
    """Floating-point operations that exact scoring of one career cannot do without, two for each multiplication.

    Matrix products only:
    - the linear layers, for each token of the career up to the last prompt, and each inner node of each record's
      tree;
    - attention, queries with keys and weights with values, for visible keys only: a token of the career sees
      those before it and itself; a node sees its prompt, its ancestors and itself;
    - the vocabulary projection, at the end of each prompt and at each inner node: the softmax needs all of it
      there, and nowhere else.
    Norms, activations, rotations, softmax and lookups count nothing, nor does what is computed beyond need.
    """
    config, head = model.config, model.get_output_embeddings()
    linear = sum(
        part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear) and part is not head
    )
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens, records = int(prompt_ends_Q.max()), len(prompt_ends_Q)
    nodes = records * trie.nodes
    keys_of_tokens = tokens * (tokens + 1) // 2
    keys_of_nodes = trie.nodes * int(prompt_ends_Q.sum()) + records * int(trie.depths_M.sum())
    per_key = 2 * config.num_hidden_layers * config.num_attention_heads * head_size
    return 2 * (
        linear * (tokens + nodes)
        + per_key * (keys_of_tokens + keys_of_nodes)
        + head.weight.numel() * (records + nodes)
    )
