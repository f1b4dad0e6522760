"""All titles of a choice set as one token tree, so that a beginning that titles share is computed once.

Legend: J titles, M inner nodes (a token after which some title goes on), E edges (a token that some title
takes; its last token, the terminator's, is an edge too), D the longest title in tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ROOT = -1
"""Parent of the first tokens: the end of the prompt."""


@dataclass(frozen=True)
class TitleTrie:
    """The tree in arrays; inner nodes are ordered so that parents come first."""

    tokens_M: NDArray[np.int64]
    parents_M: NDArray[np.int64]
    """Inner node before each inner node, or ROOT."""
    depths_M: NDArray[np.int64]
    """Tokens from the end of the prompt, 1 for a title's first token."""
    edge_tokens_E: NDArray[np.int64]
    edge_parents_E: NDArray[np.int64]
    """Inner node after which each edge is taken, or ROOT."""
    title_edges_JD: NDArray[np.int64]
    """The edges of every title, filled up with E."""

    def title(self, place: int) -> list[int]:
        """The token ids of one title."""
        edges = self.title_edges_JD[place]
        return [int(self.edge_tokens_E[edge]) for edge in edges if edge < len(self.edge_tokens_E)]

    @classmethod
    def of(cls, titles: Sequence[tuple[int, ...]]) -> "TitleTrie":
        """Build the tree; no title may be the beginning of another, which a terminator guarantees."""
        edges: dict[tuple[int, ...], int] = {}
        for title in titles:
            for depth in range(1, len(title) + 1):
                edges.setdefault(title[:depth], len(edges))
        paths = sorted({path[:-1] for path in edges if len(path) > 1}, key=len)
        if set(paths) & set(titles) or len(set(titles)) < len(titles):
            raise ValueError("a title is the same as, or the beginning of, another: titles need a terminator")
        node = {path: number for number, path in enumerate(paths)} | {(): ROOT}
        longest = max(map(len, titles))
        title_edges_JD = np.full((len(titles), longest), len(edges))
        for row, title in enumerate(titles):
            title_edges_JD[row, : len(title)] = [edges[title[:depth]] for depth in range(1, len(title) + 1)]
        return cls(
            tokens_M=np.array([path[-1] for path in paths], dtype=np.int64),
            parents_M=np.array([node[path[:-1]] for path in paths], dtype=np.int64),
            depths_M=np.array([len(path) for path in paths], dtype=np.int64),
            edge_tokens_E=np.array([path[-1] for path in edges], dtype=np.int64),
            edge_parents_E=np.array([node[path[:-1]] for path in edges], dtype=np.int64),
            title_edges_JD=title_edges_JD,
        )

    @cached_property
    def levels(self) -> list[slice]:
        """The inner nodes of each depth, the first tokens of titles first."""
        bounds = np.searchsorted(self.depths_M, np.arange(1, self.depths_M.max(initial=0) + 2))
        return [slice(int(start), int(end)) for start, end in itertools.pairwise(bounds)]

    @property
    def width(self) -> int:
        """Inner nodes of the widest level, at least 1."""
        return max([1, *(level.stop - level.start for level in self.levels)])

    def edges_by_level(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """Per depth, the edges taken there, their tokens, and their parents counted from their level's first."""
        starts = [0, *(level.start for level in self.levels)]
        depth_E = np.append(self.depths_M, 0)[self.edge_parents_E]  # ROOT, the last place, has depth 0
        by_level = []
        for depth, start in enumerate(starts):
            edges = np.flatnonzero(depth_E == depth)
            parents = np.zeros_like(edges) if depth == 0 else self.edge_parents_E[edges] - start
            by_level.append((edges, self.edge_tokens_E[edges], parents))
        return by_level

    def paths(self, level: slice) -> NDArray[np.int64]:
        """The inner nodes from the root to each node of a level, the node itself last, shape (W, depth)."""
        nodes = np.arange(level.start, level.stop)
        path = [nodes]
        while (nodes := self.parents_M[nodes])[:1] != ROOT:
            path.append(nodes)
        return np.stack(path[::-1], axis=1)
