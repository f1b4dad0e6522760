"""The token tree of all titles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labor_llm.language.trie import NONE, TitleTrie

END = 9
titles = st.lists(
    st.lists(st.integers(0, 8), min_size=1, max_size=5).map(lambda ids: (*ids, END)),
    min_size=1,
    max_size=12,
    unique=True,
)


def walked(trie: TitleTrie) -> dict[int, tuple[int, ...]]:
    """Every title by its place, read off the edges from the root down."""
    begun, ended = {NONE: ()}, {}
    for token, parent, child, title in zip(
        trie.edge_tokens_E, trie.edge_parents_E, trie.edge_children_E, trie.edge_titles_E, strict=True
    ):
        path = (*begun[parent], int(token))
        if title == NONE:
            begun[child] = path
            assert trie.tokens_M[child] == token
            assert trie.depths_M[child] == len(path)
        else:
            ended[int(title)] = path
    return ended


def walked_nodes(trie: TitleTrie) -> list[tuple[int, ...]]:
    """The path to every inner node, by its number."""
    begun = {NONE: ()}
    for token, parent, child in zip(trie.edge_tokens_E, trie.edge_parents_E, trie.edge_children_E, strict=True):
        begun[child] = (*begun[parent], int(token)) if child != NONE else begun.get(child, ())
    begun.pop(NONE)
    return [begun[node] for node in range(trie.nodes)]


@given(titles)
def test_titles_can_be_read_back_from_the_edges(titles):
    assert walked(TitleTrie.of(titles)) == dict(enumerate(titles))


@given(titles)
def test_shared_beginnings_are_one_node(titles):
    trie = TitleTrie.of(titles)
    assert trie.nodes == len({title[:depth] for title in titles for depth in range(1, len(title))})
    assert len(trie.edge_tokens_E) == len({title[:d] for title in titles for d in range(1, len(title) + 1)})


@given(titles)
def test_edges_are_found_by_the_node_that_they_leave(titles):
    trie = TitleTrie.of(titles)
    for node in range(-1, trie.nodes):
        edges = slice(trie.edge_starts[node + 1], trie.edge_starts[node + 2])
        assert edges.start < edges.stop
        assert (trie.edge_parents_E[edges] == node).all()
    assert trie.edge_starts[-1] == len(trie.edge_tokens_E)


@given(titles)
def test_a_node_knows_the_titles_below_it(titles):
    trie = TitleTrie.of(titles)
    nodes = {title[:depth] for title in titles for depth in range(1, len(title))}
    below = {tuple(t for t in titles if t[: len(node)] == node) for node in nodes}
    assert {
        tuple(t for t, is_below in zip(titles, row, strict=True) if is_below) for row in trie.below_MJ
    } == below
    for node, size in zip(walked_nodes(trie), trie.sizes_M, strict=True):
        assert size == sum(other[: len(node)] == node for other in nodes)


@given(titles)
def test_levels_hold_the_nodes_of_one_depth(titles):
    trie = TitleTrie.of(titles)
    for depth, level in enumerate(trie.levels, start=1):
        assert (trie.depths_M[level] == depth).all()
    assert sum(level.stop - level.start for level in trie.levels) == trie.nodes


@pytest.mark.parametrize("titles", [[(1, 2), (1, 2, 3)], [(1, 2), (1, 2)]])
def test_a_title_that_begins_another_is_refused(titles):
    with pytest.raises(ValueError, match="terminator"):
        TitleTrie.of(titles)
