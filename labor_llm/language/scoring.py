"""The log-probability of every title for every record of careers, with each career read once.

A title's probability is the product over its tokens, the terminator's included (design: no title is then the
beginning of another, so the titles' probabilities cannot sum to more than one). The titles' token tree is walked
level by level, for all records of a batch at once. Pruning leaves out nodes whose probability, and so that of all
titles below them together, is known to be small: what is left out is counted, so it is known how wrong the result
can be.

Legend: T tokens of all careers of a batch, Q records, J titles, M inner nodes of their trie, N nodes of one level
of the records' trees, V tokens of the vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from labor_llm.language.attention import BLOCK_ROWS, PACKED, Block, Forest, attending, attending_to
from labor_llm.language.trie import NONE, TitleTrie

LOGITS_PER_PASS = 2**28
"""Logits that one forward pass may give: a gigabyte in float32."""
FIRST_SHARE = 0.9
"""Of the tolerance that the first walk may use: it suffices where titles have nine tenths of the mass."""
LEVEL_SHARE = 0.75
"""Of what is left of it that each level may use: improbable nodes show up at every level."""
CPU_NODES = 1024
"""Nodes of one forward pass on a CPU: what they give then stays in its caches."""
BLOCK_SCORES = 2**22
"""Scores of one attention head that a GPU holds at once."""
SETTINGS = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Scoring:
    """How much is computed of the distribution over the choice set."""

    name: str
    max_tokens: int = Field(default=4096, ge=1)
    """Tokens in one forward pass over careers or over a level of their trees; bounds the memory."""

    @property
    def allowed_error(self) -> float:
        """How far the probability of any set of titles may be from the exact one."""
        return 0.0


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ExactScoring(Scoring):
    """Every title of the choice set, exactly."""

    name: str = "exact"


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PrunedScoring(Scoring):
    """Titles that begin improbably share the probability of their beginning.

    Before normalisation, realised titles stay exact; what they are normalised by is too large by at most the
    share ``tolerance``.
    """

    name: str = "pruned"
    tolerance: float = Field(default=1e-3, ge=0, lt=1)
    """How far the probability of any set of titles may be from the exact one."""

    @property
    def allowed_error(self) -> float:
        return self.tolerance


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RealizedScoring(Scoring):
    """Only the occupation that was realised, before normalisation: one forward pass per career."""

    name: str = "realized"


def tokens_per_pass(scoring: Scoring, vocabulary: int) -> int:
    """The budget of one forward pass, smaller where the vocabulary is large."""
    return min(scoring.max_tokens, max(1, LOGITS_PER_PASS // vocabulary))


@plain_dataclass(frozen=True)
class PackedCareers:
    """Careers laid end to end in one row, and the records to score in them, career after career."""

    ids_T: Tensor
    career_starts: list[int]
    """First token of every career, and the end of the last."""
    careers_Q: Tensor
    """The career of every record, ascending."""
    prompt_ends_Q: Tensor
    """Where in the row its title begins."""
    title_ends_Q: Tensor
    """The token after its title's last, the terminator."""
    realised_Q: Tensor
    """The place of its title in the choice set, NONE if it is outside."""

    def to(self, device: torch.device) -> "PackedCareers":
        """The same on another device; Lightning calls this too."""
        return PackedCareers(
            self.ids_T.to(device),
            self.career_starts,
            self.careers_Q.to(device),
            self.prompt_ends_Q.to(device),
            self.title_ends_Q.to(device),
            self.realised_Q.to(device),
        )

    def few(self) -> "PackedCareers":
        """The first and the last career, each with its first, a middle and its last record."""
        spans, kept, starts = [], [], [0]
        for career in (0, len(self.career_starts) - 2):
            records = (self.careers_Q == career).nonzero()[:, 0]
            start, end = self.career_starts[career : career + 2]
            kept += [(int(records[place]), starts[-1] - start) for place in (0, len(records) // 2, -1)]
            spans.append(self.ids_T[start:end])
            starts.append(starts[-1] + end - start)
        records, shifts = (torch.tensor(part, device=self.ids_T.device) for part in zip(*kept, strict=True))
        return PackedCareers(
            ids_T=torch.cat(spans),
            career_starts=starts,
            careers_Q=torch.tensor([0, 0, 0, 1, 1, 1], device=self.ids_T.device),
            prompt_ends_Q=self.prompt_ends_Q[records] + shifts,
            title_ends_Q=self.title_ends_Q[records] + shifts,
            realised_Q=self.realised_Q[records],
        )

    @property
    def positions_T(self) -> Tensor:
        """Every token's place in its own career."""
        starts = torch.tensor(self.career_starts)
        places = torch.arange(len(self.ids_T)) - starts[:-1].repeat_interleave(starts.diff())
        return places.to(self.ids_T.device)


@plain_dataclass  # not frozen: Lightning moves its tensors to the computer's own memory
class Scores:
    """What the titles' trees gave."""

    raw_QJ: Tensor
    """Log-probabilities before normalisation, float32; titles below an unexpanded node share its probability.
    Of realised titles only: one column."""
    unexpanded_Q: Tensor
    """Probability of all unexpanded nodes together, float64."""

    @property
    def sums_Q(self) -> Tensor:
        """What each row sums to before normalisation, float64."""
        return self.raw_QJ.double().exp().sum(1)

    @property
    def bound_Q(self) -> Tensor:
        """After normalisation, no event's probability (no set of titles') is further from the exact one."""
        return self.unexpanded_Q / self.sums_Q

    @classmethod
    def joined(cls, parts: Sequence["Scores"]) -> "Scores":
        """The scores of several batches, one after the other."""
        return cls(torch.cat([part.raw_QJ for part in parts]), torch.cat([part.unexpanded_Q for part in parts]))


@plain_dataclass(frozen=True)
class Level:
    """Nodes of one level of the trees, record after record."""

    records_N: Tensor
    nodes_N: Tensor
    """Their numbers in the trie."""
    log_probs_N: Tensor
    """Of the tokens from the prompt to the node."""
    ancestors_NA: Tensor
    """Their numbers in the forest."""

    def __len__(self) -> int:
        return len(self.records_N)

    def __getitem__(self, chosen: Tensor | slice) -> "Level":
        return Level(
            self.records_N[chosen], self.nodes_N[chosen], self.log_probs_N[chosen], self.ancestors_NA[chosen]
        )


@plain_dataclass(frozen=True)
class Walk:
    """What a walk over the trees of a batch needs, and writes."""

    batch: PackedCareers
    forest: Forest
    scores: Scores
    allowed_Q: Tensor
    """Probability that may be left unexpanded."""


class TitleScorer:
    """Scores careers with one language model and one trie of titles."""

    def __init__(self, model: PreTrainedModel, trie: TitleTrie, max_tokens: int, tolerance: float = 0.0) -> None:
        self.model, self.trie, self.max_tokens, self.tolerance = model, trie, max_tokens, tolerance
        device = model.device
        self.pass_nodes = min(max_tokens, CPU_NODES) if device.type == "cpu" else max_tokens
        self.node_tokens_M = torch.as_tensor(trie.tokens_M, device=device)
        self.edge_starts = torch.as_tensor(trie.edge_starts, device=device)
        self.edge_tokens_E = torch.as_tensor(trie.edge_tokens_E, device=device)
        self.edge_children_E = torch.as_tensor(trie.edge_children_E, device=device)
        self.edge_titles_E = torch.as_tensor(trie.edge_titles_E, device=device)
        self.sizes_M = torch.as_tensor(trie.sizes_M, device=device)
        self.below_MJ = torch.as_tensor(trie.below_MJ, device=device)

    @torch.no_grad()
    def score(self, batch: PackedCareers) -> Scores:
        """Scores of all records. Each tree attends to its career before the record's title, nothing later."""
        past, root_logits_QV = self._read(batch, batch.prompt_ends_Q - 1)
        records_Q = torch.arange(len(batch.careers_Q), device=batch.ids_T.device)
        scores = Scores(
            raw_QJ=root_logits_QV.new_full((len(records_Q), len(self.trie.titles)), -math.inf),
            unexpanded_Q=root_logits_QV.new_zeros(len(records_Q), dtype=torch.float64),
        )
        walk = Walk(
            batch, Forest(past), scores, torch.full_like(scores.unexpanded_Q, FIRST_SHARE * self.tolerance)
        )
        self._walk(walk, records_Q, root_logits_QV)
        missed_Q = scores.bound_Q > self.tolerance
        if missed_Q.any():  # a model that expects other things than titles: little mass to normalise by
            walk.allowed_Q[missed_Q] = (
                self.tolerance / 2 * (scores.sums_Q - scores.unexpanded_Q)[missed_Q].clamp(min=0)
            )
            scores.unexpanded_Q[missed_Q] = 0
            self._walk(walk, records_Q[missed_Q], root_logits_QV[missed_Q])
        return scores

    def _walk(self, walk: Walk, records_R: Tensor, root_logits_RV: Tensor) -> None:
        """Walk the trees of some records from their roots down."""
        root = Level(
            records_R,
            nodes_N=torch.full_like(records_R, NONE),
            log_probs_N=torch.zeros_like(root_logits_RV[:, 0]),
            ancestors_NA=records_R.new_empty(len(records_R), 0),
        )
        first = self._expand(root, root_logits_RV, None, walk)
        with attending_to(self.model, walk.forest):
            for level in self._within_budget(first):
                self._descend(level, walk)
                walk.forest.fell()

    @torch.no_grad()
    def score_realised(self, batch: PackedCareers) -> Scores:
        """Scores of the titles that stand in the careers alone, in one column: one reading of the careers."""
        records, places = _ranges(batch.prompt_ends_Q, batch.title_ends_Q)
        logits = self._read(batch, places - 1)[1]
        log_probs = logits.gather(1, batch.ids_T[places, None])[:, 0] - logits.logsumexp(-1)
        sums_Q = log_probs.new_zeros(len(batch.prompt_ends_Q)).index_add_(0, records, log_probs)
        return Scores(sums_Q[:, None], torch.zeros_like(sums_Q, dtype=torch.float64))

    def _read(self, batch: PackedCareers, places: Tensor) -> tuple[DynamicCache, Tensor]:
        """Keys and values of the careers, and the logits after the tokens at the given places, float32."""
        past = DynamicCache()
        with attending(self.model, PACKED):
            logits = self.model(
                batch.ids_T[None],
                position_ids=batch.positions_T[None],
                past_key_values=past,
                use_cache=True,
                logits_to_keep=places,
                career_starts=batch.career_starts,
            ).logits
        return past, logits[0].float()

    def _within_budget(self, first: Level) -> Iterator[Level]:
        """The trees of some records at a time, by the nodes that may be kept for them.

        Whatever is pruned, no more is kept than for whole trees whose widest level has ``max_tokens`` nodes.
        """
        _, places_N, counts_R = torch.unique_consecutive(first.records_N, return_inverse=True, return_counts=True)
        sizes_R = torch.zeros_like(counts_R).index_add_(0, places_N, self.sizes_M[first.nodes_N])
        budget = self.max_tokens * self.trie.nodes // self.trie.width
        start = end = kept = 0
        for count, size in zip(counts_R.tolist(), sizes_R.tolist(), strict=True):
            if end > start and kept + size > budget:
                yield first[slice(start, end)]
                start, kept = end, 0
            end, kept = end + count, kept + size
        if end > start:
            yield first[slice(start, end)]

    def _descend(self, level: Level, walk: Walk) -> None:
        """From the trees' first nodes down."""
        depth = 1
        while len(level):
            children = []
            for start in range(0, len(level), self.pass_nodes):
                piece = level[slice(start, start + self.pass_nodes)]
                first = walk.forest.size
                children.append(self._expand(piece, self._logits(piece, depth, walk), first, walk))
            level = _joined(children)
            depth += 1

    def _logits(self, piece: Level, depth: int, walk: Walk) -> Tensor:
        """Logits after every node, (N, V), float32."""
        batch = walk.batch
        ends_N = batch.prompt_ends_Q[piece.records_N]
        starts = torch.tensor(batch.career_starts, device=ends_N.device)
        positions_N = ends_N - starts[batch.careers_Q[piece.records_N]] - 1 + depth
        walk.forest.enter(piece.ancestors_NA, _blocks(piece.records_N, depth, batch))
        logits = self.model(
            self.node_tokens_M[piece.nodes_N][None], position_ids=positions_N[None], use_cache=False
        ).logits
        walk.forest.leave()
        return logits[0].float()

    def _expand(self, level: Level, logits_NV: Tensor, first: int | None, walk: Walk) -> Level:
        """Write the titles that end here, and return the nodes one level down that are expanded next.

        ``first`` is the number in the forest of the level's first node; None for the root.
        """
        begins, ends = self.edge_starts[level.nodes_N + 1], self.edge_starts[level.nodes_N + 2]
        rows, edges = _ranges(begins, ends)
        log_probs = logits_NV[rows, self.edge_tokens_E[edges]] - logits_NV.logsumexp(-1)[rows]
        log_probs = log_probs + level.log_probs_N[rows]
        records, titles, children = level.records_N[rows], self.edge_titles_E[edges], self.edge_children_E[edges]
        ending = titles != NONE
        walk.scores.raw_QJ[records[ending], titles[ending]] = log_probs[ending]
        on = ~ending
        ancestors = level.ancestors_NA[rows[on]]
        if first is not None:
            ancestors = torch.cat([ancestors, rows[on, None] + first], dim=1)
        below = Level(records[on], children[on], log_probs[on], ancestors)
        return self._prune(below, walk) if self.tolerance else below

    def _prune(self, level: Level, walk: Walk) -> Level:
        """Leave out nodes of each record while their sum stays within the level's share.

        Those come first that save most for their probability: the nodes below them are not expanded either.
        """
        probs_N = level.log_probs_N.double().exp()
        realised_N, scores = walk.batch.realised_Q[level.records_N], walk.scores
        needed_N = (realised_N != NONE) & self.below_MJ[level.nodes_N, realised_N]
        order = torch.argsort(probs_N / self.sizes_M[level.nodes_N], stable=True)
        order = order[torch.argsort(level.records_N[order], stable=True)]
        sums = torch.where(needed_N, 0.0, probs_N)[order].cumsum(0)
        records = level.records_N[order]
        starts = torch.searchsorted(records, records)  # first of each record's nodes
        left_out = sums - torch.where(starts > 0, sums[(starts - 1).clamp(min=0)], 0.0)
        drop_N = torch.empty_like(needed_N)
        drop_N[order] = left_out <= LEVEL_SHARE * (walk.allowed_Q - scores.unexpanded_Q)[records]
        drop_N &= ~needed_N
        dropped = level[drop_N]
        scores.unexpanded_Q.index_add_(0, dropped.records_N, probs_N[drop_N])
        below_NJ = self.below_MJ[dropped.nodes_N]
        shares_N = dropped.log_probs_N - below_NJ.sum(1).log()
        places, titles = below_NJ.nonzero(as_tuple=True)
        scores.raw_QJ[dropped.records_N[places], titles] = shares_N[places]
        return level[~drop_N]


def _joined(levels: list[Level]) -> Level:
    """Levels one after the other."""
    if len(levels) == 1:
        return levels[0]
    parts = [(level.records_N, level.nodes_N, level.log_probs_N, level.ancestors_NA) for level in levels]
    return Level(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _ranges(begins_N: Tensor, ends_N: Tensor) -> tuple[Tensor, Tensor]:
    """All numbers from each begin to before its end, one range after the other, and the range of each."""
    counts_N = ends_N - begins_N
    rows = torch.arange(len(counts_N), device=counts_N.device).repeat_interleave(counts_N)
    offsets = begins_N - (counts_N.cumsum(0) - counts_N)
    return rows, torch.arange(len(rows), device=rows.device) + offsets[rows]


def _blocks(records_N: Tensor, depth: int, batch: PackedCareers) -> list[Block]:
    """The pass's nodes, cut where the career changes and, on a CPU, also between records with many nodes."""
    on_cpu = records_N.device.type == "cpu"
    rows = BLOCK_ROWS if on_cpu else max(BLOCK_ROWS, BLOCK_SCORES // len(batch.ids_T))
    records, counts = (part.tolist() for part in torch.unique_consecutive(records_N, return_counts=True))
    careers = batch.careers_Q[records].tolist()
    ends_N = batch.prompt_ends_Q[records_N]
    blocks, start, end, begun = [], 0, 0, 0
    for place, (career, count) in enumerate(zip(careers, counts, strict=True)):
        end += count
        last = place + 1 == len(careers) or careers[place + 1] != career
        if last or end - start >= rows:
            shared = int(batch.prompt_ends_Q[records[place]]) if begun == place else None
            blocks.append(Block(slice(start, end), batch.career_starts[career], ends_N[start:end], shared, depth))
            start, begun = end, place + 1
    return blocks
