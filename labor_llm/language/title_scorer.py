"""The log-probability of every title for every record of careers, with each career read once.

The titles' token tree hangs on every record. Exact scoring expands it subtree by subtree, whatever their depth,
as many as go into a forward pass. Pruning walks it level by level, for many records at once, and leaves out nodes
whose probability, and so that of all titles below them together, is known to be small: what is left out is
counted, so it is known how wrong the result can be.

Legend: T tokens of all careers of a batch, Q records, J titles, M inner nodes of their trie, N nodes of a pass or
of one level of the records' trees, A steps of the way to a node, E edges, V tokens of the vocabulary.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from labor_llm.language.attention import BLOCK_ROWS, PACKED, Block, Forest, Paths, attending, attending_to
from labor_llm.language.scoring import PackedCareers, Scores
from labor_llm.language.trie import NONE, TitleTrie

FIRST_SHARE = 0.9
"""Of the tolerance that the first walk may use: it suffices where titles have nine tenths of the mass."""
LEVEL_SHARE = 0.75
"""Of what is left of it that each level may use: improbable nodes show up at every level."""
CPU_NODES = 2048
"""Nodes of one forward pass on a CPU: a whole tree of several hundred titles, whose attention to a career is one
call, and still few enough for what they give to stay in the caches."""
BLOCK_SCORES = 2**22
"""Scores of one attention head that a GPU holds at once."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
            for level in [first] if self._in_subtrees(first) else self._within_budget(first):
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
        ends = [0, *counts_R.cumsum(0).tolist()]
        for part in _parts(sizes_R, budget):
            yield first[slice(ends[part.start], ends[part.stop])]

    def _descend(self, level: Level, walk: Walk) -> None:
        """From the trees' first nodes down, level by level until what is left is expanded subtree by subtree."""
        depth = 1
        while not self._in_subtrees(level):
            children = []
            for start in range(0, len(level), self.pass_nodes):
                piece = level[slice(start, start + self.pass_nodes)]
                first = walk.forest.size
                children.append(self._expand(piece, self._logits([piece], depth, walk, kept=True), first, walk))
            level = _joined(children)
            depth += 1
        for part in _parts(self.sizes_M[level.nodes_N], self.pass_nodes):
            self._finish(level[part], depth, walk)

    def _in_subtrees(self, level: Level) -> bool:
        """Whether a level is expanded with all below it.

        Exact: if every subtree fits into a pass. Pruned: if all that is left does, so that no pass can be saved.
        """
        sizes_N = self.sizes_M[level.nodes_N]
        if self.tolerance or not len(level):
            return int(sizes_N.sum()) <= self.pass_nodes
        return int(sizes_N.max()) <= self.pass_nodes

    def _finish(self, level: Level, depth: int, walk: Walk) -> None:
        """Expand some nodes of a level and all below them in one pass."""
        levels, edges, first = [level], list[tuple[Tensor, Tensor]](), walk.forest.size
        while len(levels[-1]):
            edges.append(self._edges(levels[-1]))
            levels.append(self._below(levels[-1], edges[-1], first))
            first += len(levels[-2])
        del levels[-1]
        logits = self._logits(levels, depth, walk, kept=False).split([len(each) for each in levels])
        log_probs_N = level.log_probs_N
        for each, its_edges, logits_NV in zip(levels, edges, logits, strict=True):
            log_probs_N = self._write(replace(each, log_probs_N=log_probs_N), its_edges, logits_NV, walk)

    def _logits(self, levels: Sequence[Level], depth: int, walk: Walk, *, kept: bool) -> Tensor:
        """Logits after every node of a level and of those below it, (N, V), float32."""
        batch = walk.batch
        records_N = torch.cat([level.records_N for level in levels])
        nodes_N = torch.cat([level.nodes_N for level in levels])
        depths_N = torch.cat([torch.full_like(level.nodes_N, depth + k) for k, level in enumerate(levels)])
        starts = torch.tensor(batch.career_starts, device=records_N.device)
        positions_N = batch.prompt_ends_Q[records_N] - starts[batch.careers_Q[records_N]] - 1 + depths_N
        order_N = None if (records_N.diff() >= 0).all() else records_N.argsort(stable=True)
        by_record = (records_N, depths_N) if order_N is None else (records_N[order_N], depths_N[order_N])
        walk.forest.enter(_paths(levels, walk.forest.size), _blocks(*by_record, batch), order_N)
        logits = self.model(
            self.node_tokens_M[nodes_N][None], position_ids=positions_N[None], use_cache=False
        ).logits
        walk.forest.leave(kept)
        return logits[0].float()

    def _expand(self, level: Level, logits_NV: Tensor, first: int | None, walk: Walk) -> Level:
        """Write the titles that end here, and return the nodes one level down that are expanded next.

        ``first`` is the number in the forest of the level's first node; None for the root.
        """
        edges = self._edges(level)
        log_probs_N = self._write(level, edges, logits_NV, walk)
        below = replace(self._below(level, edges, first), log_probs_N=log_probs_N)
        return self._prune(below, walk) if self.tolerance else below

    def _edges(self, level: Level) -> tuple[Tensor, Tensor]:
        """The edges that leave a level's nodes: the nodes' places in it, and the edges' numbers in the trie."""
        return _ranges(self.edge_starts[level.nodes_N + 1], self.edge_starts[level.nodes_N + 2])

    def _below(self, level: Level, edges: tuple[Tensor, Tensor], first: int | None) -> Level:
        """The nodes one level down, without the log-probabilities that ``_write`` gives; ``first`` as above."""
        rows, numbers = edges
        children = self.edge_children_E[numbers]
        rows, children = rows[children != NONE], children[children != NONE]
        ancestors_NA = level.ancestors_NA[rows]
        if first is not None:
            ancestors_NA = torch.cat([ancestors_NA, rows[:, None] + first], dim=1)
        return Level(level.records_N[rows], children, level.log_probs_N[:0], ancestors_NA)

    def _write(self, level: Level, edges: tuple[Tensor, Tensor], logits_NV: Tensor, walk: Walk) -> Tensor:
        """Write the titles that end here; the log-probabilities of the nodes one level down."""
        rows, numbers = edges
        log_probs = logits_NV[rows, self.edge_tokens_E[numbers]] - logits_NV.logsumexp(-1)[rows]
        log_probs = log_probs + level.log_probs_N[rows]
        titles = self.edge_titles_E[numbers]
        ending = titles != NONE
        walk.scores.raw_QJ[level.records_N[rows[ending]], titles[ending]] = log_probs[ending]
        return log_probs[~ending]

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


def _parts(sizes_N: Tensor, budget: int) -> Iterator[slice]:
    """Consecutive parts, each as long as its sizes sum to no more than the budget, and one at least."""
    start, total = 0, 0
    sizes = sizes_N.tolist()
    for place, size in enumerate(sizes):
        if place > start and total + size > budget:
            yield slice(start, place)
            start, total = place, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))


def _paths(levels: Sequence[Level], first: int) -> Paths:
    """The ways to the nodes of a level and of those below it, whose first has the given number."""
    before, steps = levels[0].ancestors_NA.shape[1], levels[-1].ancestors_NA.shape[1] + 1
    firsts = [0, *itertools.accumulate(len(level) for level in levels[:-1])]
    ways = []
    for level, place in zip(levels, firsts, strict=True):
        own_N = torch.arange(first + place, first + place + len(level), device=level.nodes_N.device)
        way_NA = torch.cat([level.ancestors_NA, own_N[:, None]], dim=1)
        ways.append(pad(way_NA, (0, steps - way_NA.shape[1]), value=NONE))
    return Paths(torch.cat(ways).T.contiguous(), [0] * before + firsts)


def _cut(records_N: Tensor, most: int | None) -> tuple[list[int], list[int]]:
    """The records of ordered nodes, and how many each has; one of too many nodes comes several times."""
    records, counts = (part.tolist() for part in torch.unique_consecutive(records_N, return_counts=True))
    pieces = [
        (record, min(most or count, count - begun))
        for record, count in zip(records, counts, strict=True)
        for begun in range(0, count, most or count)
    ]
    return [record for record, _ in pieces], [count for _, count in pieces]


def _blocks(records_N: Tensor, depths_N: Tensor, batch: PackedCareers) -> list[Block]:
    """The pass's nodes, cut where the career changes and between records with many nodes; on a GPU also within."""
    on_cpu = records_N.device.type == "cpu"
    rows = BLOCK_ROWS if on_cpu else max(BLOCK_ROWS, BLOCK_SCORES // len(batch.ids_T))
    records, counts = _cut(records_N, None if on_cpu else rows)
    careers = batch.careers_Q[records].tolist()
    ends_N = batch.prompt_ends_Q[records_N]
    blocks, start, end, begun = [], 0, 0, 0
    for place, (career, count) in enumerate(zip(careers, counts, strict=True)):
        end += count
        last = place + 1 == len(careers) or careers[place + 1] != career
        if last or end - start >= rows:
            shared = int(batch.prompt_ends_Q[records[place]]) if begun == place else None
            nodes = slice(start, end)
            blocks.append(Block(nodes, batch.career_starts[career], ends_N[nodes], shared, depths_N[nodes]))
            start, begun = end, place + 1
    return blocks
