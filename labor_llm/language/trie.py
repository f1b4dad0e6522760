"""All titles of a choice set as one token tree, so that a beginning that titles share is computed once.

Legend: J titles, M inner nodes (a token after which some title goes on), E edges (a token that some title
takes; its last token, the terminator's, is an edge too).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NONE = -1
"""No inner node: the root, the end of the prompt, as a parent; the end of a title, as a child."""


@dataclass(frozen=True)
class TitleTrie:
    """The tree in arrays; inner nodes are ordered by depth, edges by the node that they leave, the root first."""

    titles: tuple[tuple[int, ...], ...]
    tokens_M: NDArray[np.int64]
    depths_M: NDArray[np.int64]
    """Tokens from the end of the prompt, 1 for a title's first token."""
    edge_tokens_E: NDArray[np.int64]
    edge_parents_E: NDArray[np.int64]
    """Inner node that each edge leaves, or NONE."""
    edge_children_E: NDArray[np.int64]
    """Inner node that each edge leads to, or NONE."""
    edge_titles_E: NDArray[np.int64]
    """The title that ends with the edge, or NONE."""

    @classmethod
    def of(cls, titles: Sequence[tuple[int, ...]]) -> "TitleTrie":
        """Build the tree; no title may be the beginning of another, which a terminator guarantees."""
        edges = {title[:depth] for title in titles for depth in range(1, len(title) + 1)}
        inner = sorted({path[:-1] for path in edges if len(path) > 1}, key=lambda path: (len(path), path))
        if set(inner) & set(titles) or len(set(titles)) < len(titles):
            raise ValueError("a title is the same as, or the beginning of, another: titles need a terminator")
        node = {path: number for number, path in enumerate(inner)} | {(): NONE}
        place = {title: number for number, title in enumerate(titles)}
        ordered = sorted(edges, key=lambda path: (node[path[:-1]], path))
        return cls(
            titles=tuple(titles),
            tokens_M=np.array([path[-1] for path in inner], dtype=np.int64),
            depths_M=np.array([len(path) for path in inner], dtype=np.int64),
            edge_tokens_E=np.array([path[-1] for path in ordered], dtype=np.int64),
            edge_parents_E=np.array([node[path[:-1]] for path in ordered], dtype=np.int64),
            edge_children_E=np.array([node.get(path, NONE) for path in ordered], dtype=np.int64),
            edge_titles_E=np.array([place.get(path, NONE) for path in ordered], dtype=np.int64),
        )

    @property
    def nodes(self) -> int:
        """M, the number of inner nodes."""
        return len(self.tokens_M)

    @cached_property
    def edge_starts(self) -> NDArray[np.int64]:
        """First edge of the root, of every inner node, and the end of the last, shape (M + 2,)."""
        return np.searchsorted(self.edge_parents_E, np.arange(-1, self.nodes + 1))

    @cached_property
    def levels(self) -> list[slice]:
        """The inner nodes of each depth, the first tokens of titles first."""
        bounds = np.searchsorted(self.depths_M, np.arange(1, self.depths_M.max(initial=0) + 2))
        return [slice(int(start), int(end)) for start, end in itertools.pairwise(bounds)]

    @property
    def width(self) -> int:
        """Inner nodes of the widest level, at least 1."""
        return max([1, *(level.stop - level.start for level in self.levels)])

    @cached_property
    def sizes_M(self) -> NDArray[np.int64]:
        """Inner nodes of the tree that hangs on an inner node, itself included."""
        sizes_M = np.ones(self.nodes, dtype=np.int64)
        for parent, child in zip(self.edge_parents_E[::-1], self.edge_children_E[::-1], strict=True):
            if NONE not in (parent, child):
                sizes_M[parent] += sizes_M[child]
        return sizes_M

    @cached_property
    def below_MJ(self) -> NDArray[np.bool_]:
        """Whether a title goes through an inner node, shape (M, J)."""
        below_MJ = np.zeros((self.nodes, len(self.titles)), dtype=bool)
        for parent, child, title in zip(
            self.edge_parents_E[::-1], self.edge_children_E[::-1], self.edge_titles_E[::-1], strict=True
        ):  # children have later edges than their parents
            if parent != NONE:
                below_MJ[parent] |= below_MJ[child] if child != NONE else np.arange(len(self.titles)) == title
        return below_MJ
