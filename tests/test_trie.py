"""The token tree of all titles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labor_llm.language.trie import ROOT, TitleTrie

END = 9
titles = st.lists(
    st.lists(st.integers(0, 8), min_size=1, max_size=5).map(lambda ids: (*ids, END)),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(titles)
def test_titles_can_be_read_back_from_the_edges(titles):
    trie = TitleTrie.of(titles)
    assert [tuple(trie.title(place)) for place in range(len(titles))] == titles


@given(titles)
def test_shared_beginnings_are_one_node(titles):
    trie = TitleTrie.of(titles)
    beginnings = {title[:depth] for title in titles for depth in range(1, len(title))}
    assert len(trie.tokens_M) == len(beginnings)
    assert len(trie.edge_tokens_E) == len({title[:d] for title in titles for d in range(1, len(title) + 1)})


@given(titles)
def test_paths_lead_from_the_root_to_the_node(titles):
    trie = TitleTrie.of(titles)
    for depth, level in enumerate(trie.levels, start=1):
        assert (trie.depths_M[level] == depth).all()
        paths = trie.paths(level)
        assert paths.shape == (level.stop - level.start, depth)
        assert (trie.parents_M[paths[:, 0]] == ROOT).all()
        assert (trie.parents_M[paths[:, 1:]] == paths[:, :-1]).all()
        assert paths[:, -1].tolist() == list(range(level.start, level.stop))


@given(titles)
def test_edges_of_all_levels_are_all_edges(titles):
    trie = TitleTrie.of(titles)
    levels = trie.edges_by_level()
    assert sorted(np.concatenate([edges for edges, _, _ in levels])) == list(range(len(trie.edge_tokens_E)))
    for level, (edges, _, parents) in zip(trie.levels, levels[1:], strict=True):
        assert (parents + level.start == trie.edge_parents_E[edges]).all()


@pytest.mark.parametrize("titles", [[(1, 2), (1, 2, 3)], [(1, 2), (1, 2)]])
def test_a_title_that_begins_another_is_refused(titles):
    with pytest.raises(ValueError, match="terminator"):
        TitleTrie.of(titles)
