"""What pruning leaves out at several tolerances, for the model that `make bench-scoring` has trained.

    python -m experiments.pruning outputs/benchmarks/micro-title-generated-HASH

Prints, for the records of three test persons: expanded nodes of a record's tree, the largest certified bound, and
the largest total variation distance from the exact distribution.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.panel import generated_panel
from benchmarks.scoring import SPLIT
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.batches import ScoringBatches
from labor_llm.language.scoring import Scores
from labor_llm.language.title_scorer import Level, TitleScorer, Walk
from labor_llm.language.tokens import CareerEncoder
from labor_llm.language.trie import TitleTrie
from labor_llm.predictions import choice_indices
from labor_llm.templates import ResumeTemplate, Titles

PERSONS, TRAINED_ON = 3, 3000


class Counting(TitleScorer):
    """Counts the nodes that the model reads."""

    expanded = 0

    def _logits(self, levels: Sequence[Level], depth: int, walk: Walk, *, kept: bool) -> Tensor:
        self.expanded += sum(map(len, levels))
        return super()._logits(levels, depth, walk, kept=kept)


def main(folder: Path) -> None:
    """Score the same records at every tolerance."""
    careers = SPLIT(generated_panel(TRAINED_ON, seed=0)).test
    some = careers.select_persons(careers.table["person_id"].unique(maintain_order=True)[:PERSONS])
    backbone = HubBackbone(name="micro", path=str(folder.resolve()))
    tokenizer = backbone.tokenizer([])
    model = backbone.model(tokenizer, torch.float32).eval()
    encoder = CareerEncoder(tokenizer, ResumeTemplate(), Titles(), careers.taxonomy)
    trie = TitleTrie.of(list(encoder.titles.values()))
    realised_N = choice_indices(some.table["occupation"], tuple(encoder.titles))
    batch = ScoringBatches(encoder.encode(some), realised_N, max_tokens=10**9)[0]["careers"]
    exact: Scores | None = None
    for tolerance in (0.0, 1e-3, 1e-2, 5e-2):
        scorer = Counting(model, trie, 4096, tolerance)
        scores = scorer.score(batch)
        exact = exact or scores
        distance = (scores.raw_QJ.softmax(1) - exact.raw_QJ.softmax(1)).abs().sum(1).max() / 2
        print(
            f"tolerance {tolerance:g}: {scorer.expanded / len(some):.0f} of {trie.nodes} nodes, "
            f"bound {scores.bound_Q.max():.2g}, distance {distance:.2g}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
