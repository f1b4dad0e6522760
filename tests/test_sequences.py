"""Careers in numbers, their batches, and the networks beside definitions that are spelled out."""

import math

import numpy as np
import pytest
import torch
from conftest import CAREERS, CHOICES, TRAIN, panel
from torch.nn.functional import gelu, layer_norm

from labor_llm.dropout import dropped
from labor_llm.sequences.bag import BagOfJobsNetwork
from labor_llm.sequences.batches import CodeScoringBatches, CodeTrainingBatches, Grid, collate
from labor_llm.sequences.codes import CodeBook, CodedCareers
from labor_llm.sequences.lstm import ContextualLSTM
from labor_llm.sequences.transformer import JOINED, CareerTransformer, mapped, sinusoids

UNEVEN = panel(
    person_id=["a"] * 5 + ["b"] * 1 + ["c"] * 3 + ["d"] * 2,
    year=[1980, 1981, 1982, 1983, 1984, 1980, 1980, 1981, 1983, 1981, 1982],
    occupation=["095", "095", "243", "004", "095", "243", "095", "243", "243", "095", "243"],
    education=["school", None, "school", "college", "college", "school", None, None, None, "college", "college"],
    gender=["female"] * 6 + ["male"] * 5,
)
BOOK = CodeBook.of(UNEVEN, ("095", "243"), ("year", "education", "gender", "region"))
CODED = BOOK.encode(UNEVEN)
LOGITS = 3


def everybody():
    return collate(CODED, np.arange(len(CODED)))


def test_values_have_numbers_and_what_training_never_saw_has_none():
    assert BOOK.values["education"] == ("", "college", "school")
    assert BOOK.values["region"] == ()
    assert CODED.before_N[:5].tolist() == [2, 0, 0, 1, 3]  # 2: the beginning; 3: outside the choice set
    assert CODED.targets_N[:5].tolist() == [0, 0, 1, -1, 0]
    assert CODED.covariates_NC[:5, 1].tolist() == [3, 1, 3, 2, 2]
    new = BOOK.encode(
        panel(person_id=["e"], year=[1999], occupation=["095"], education=["doctor"], region=["south"])
    )
    years = BOOK.values["year"]
    assert new.covariates_NC.tolist() == [[len(years), 0, 0, 0]]


def test_a_year_that_training_never_saw_counts_as_the_last_one_before_it():
    book = CodeBook.of(
        panel(person_id=["a"] * 3, year=[1980, 1982, 1984], occupation=["095"] * 3), ("095",), ("year",)
    )
    coded = book.encode(
        panel(person_id=["b"] * 6, year=[1979, 1980, 1981, 1982, 1984, 1990], occupation=["095"] * 6)
    )
    assert coded.covariates_NC[:, 0].tolist() == [1, 1, 1, 2, 3, 3]


def test_a_book_is_written_and_read(tmp_path):
    BOOK.write(tmp_path)
    assert CodeBook.read(tmp_path) == BOOK


def test_every_person_is_in_every_epoch_once_and_in_another_order():
    coded = CodeBook.of(TRAIN, CHOICES, ()).encode(TRAIN)
    batches = CodeTrainingBatches(coded, 16, seed=3)
    epochs = [torch.cat([batch["rows_T"] for batch in batches]) for _ in range(2)]
    for rows in epochs:
        assert sorted(rows.tolist()) == list(range(len(TRAIN)))
    assert not torch.equal(*epochs)


def test_batches_go_on_where_they_were():
    coded = CodeBook.of(TRAIN, CHOICES, ()).encode(TRAIN)
    whole, cut, resumed = (CodeTrainingBatches(coded, 16, seed=3) for _ in range(3))
    rows = [batch["rows_T"] for _ in range(2) for batch in whole]
    started = iter(cut)
    next(started), next(started)
    resumed.load_state_dict(cut.state_dict())
    for batch, expected in zip([*resumed, *resumed], rows[2:], strict=True):
        assert torch.equal(batch["rows_T"], expected)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("records", [1, 50])
def test_scoring_takes_every_record_once_and_not_too_many_together(mixed, records):
    coded = CodeBook.of(CAREERS, CHOICES, ()).encode(CAREERS)
    rows = [batch["rows_T"].tolist() for batch in CodeScoringBatches(coded, records, mixed)]
    assert sorted(row for batch in rows for row in batch) == list(range(len(CAREERS)))
    assert max(map(len, rows)) <= records + 6


def test_batches_of_all_lengths_leave_little_of_their_rows_empty():
    lengths = np.arange(1, 21).repeat(10)
    nothing = np.zeros(lengths.sum(), dtype=np.int64)
    coded = CodedCareers(np.append(0, lengths.cumsum()), nothing, nothing, nothing[:, None].astype(np.int32))
    slots = {
        mixed: sum(grid.rows * grid.length for grid in map(Grid.filled, CodeScoringBatches(coded, 500, mixed)))
        for mixed in (False, True)
    }
    assert slots[True] < 1.2 * len(nothing) < slots[False]


@pytest.mark.parametrize("grid", [Grid.of_careers, Grid.filled])
def test_grids_hold_every_record_in_a_slot_of_its_own(grid):
    batch = everybody()
    laid = grid(batch)
    assert len(set(laid.slots_T.tolist())) == len(UNEVEN)
    values = torch.arange(len(UNEVEN)).float()[:, None] + 1
    torch.testing.assert_close(laid.collected(laid.spread(values)), values)
    for career in range(len(CODED)):
        slots = laid.slots_T[batch["careers_T"] == career]
        assert (slots.diff() == 1).all()
        assert len(set((slots // laid.length).tolist())) == 1


def spelled_out(network: CareerTransformer, batch) -> torch.Tensor:
    """One career by itself, head by head and with a mask, as the publication defines it."""
    length, width = len(batch["before_T"]), network.width
    state = math.sqrt(width) * network.occupations(batch["before_T"])
    half = width // 2
    for position in range(length):
        for k in range(half):
            angle = (position + 2) / 10_000 ** (k / (half - 1))
            state = state.index_put((torch.tensor(position), torch.tensor(k)), torch.tensor(math.sin(angle)), True)
            state = state.index_put(
                (torch.tensor(position), torch.tensor(half + k)), torch.tensor(math.cos(angle)), True
            )
    for name in ("year", "education", "gender"):
        state = state + network.covariates[name](batch["covariates_TC"][:, list(BOOK.values).index(name)])
    for layer in network.layers:
        x = layer_norm(state, (width,), layer.attention_norm.weight, layer.attention_norm.bias)
        parts = layer.query_key_value(x).split(width, dim=1)
        reads = []
        for query, key, value in zip(*(part.split(width // layer.heads, dim=1) for part in parts), strict=True):
            scores = query @ key.T / math.sqrt(width // layer.heads)
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            reads.append(scores.masked_fill(future, float("-inf")).softmax(1) @ value)
        state = state + layer.read(torch.cat(reads, dim=1))
        x = layer_norm(state, (width,), layer.feed_forward_norm.weight, layer.feed_forward_norm.bias)
        state = state + layer.down(gelu(layer.up(x)))
    return network.output(layer_norm(state, (width,), network.norm.weight, network.norm.bias))


def test_careers_in_one_grid_are_read_as_each_by_itself():
    torch.manual_seed(0)
    network = CareerTransformer(BOOK, LOGITS, layers=2, width=12, feed_forward=20, heads=3, dropout=0.5).eval()
    alone = [spelled_out(network, collate(CODED, np.array([career]))) for career in range(len(CODED))]
    torch.testing.assert_close(network(everybody()), torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not JOINED[torch.bfloat16], reason="needs a processor that multiplies bfloat16")
@pytest.mark.parametrize("then", ["none", "gelu"])
def test_one_operation_is_nearer_to_the_truth_than_several(monkeypatch, then):
    torch.manual_seed(0)
    linear, values = torch.nn.Linear(24, 40), torch.randn(60, 5, 24)
    true = mapped(linear, values, then)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one = mapped(linear, values, then)
        monkeypatch.setattr("labor_llm.sequences.transformer.JOINED", {})
        several = mapped(linear, values, then)
    assert one.dtype == several.dtype == torch.bfloat16
    assert not torch.equal(one, several) or then == "none"
    assert (one - true).abs().mean() <= (several - true).abs().mean() < 5e-3


@pytest.mark.skipif(not JOINED[torch.float32], reason="needs oneDNN")
@pytest.mark.parametrize("then", ["none", "gelu"])
def test_in_float32_one_operation_is_what_several_are(then):
    torch.manual_seed(0)
    linear, values = torch.nn.Linear(24, 40), torch.randn(60, 5, 24)
    with torch.no_grad(), torch.profiler.profile() as profile:
        one = mapped(linear, values, then)
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}
    torch.testing.assert_close(one, mapped(linear, values, then), atol=1e-5, rtol=1e-5)


def test_other_types_take_several_operations():
    linear, values = torch.nn.Linear(4, 6).double(), torch.randn(3, 4).double()
    with torch.no_grad():
        torch.testing.assert_close(mapped(linear, values, "gelu"), torch.nn.functional.gelu(linear(values)))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_map_that_is_trained_has_gradients(mixed):
    linear, values = torch.nn.Linear(4, 6), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        mapped(linear, values, "gelu").sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.abs().sum() > 0


def test_bag_of_jobs_is_as_defined():
    torch.manual_seed(0)
    network, batch = BagOfJobsNetwork(BOOK, LOGITS, width=6), everybody()

    def mean(table, values):
        vectors = torch.cat([table.symbol, table.embedding(values)])
        return table.projection(vectors.mean(0))

    expected = []
    for record, place in enumerate(batch["places_T"].tolist()):
        now, earlier = batch["before_T"][record], batch["before_T"][record - place : record]
        logits = network.last.projection(network.last.embedding(now)) + mean(network.earlier, earlier)
        for name, column in BOOK.columns.items():
            values = batch["covariates_TC"][:, column]
            table = network.current[name]
            logits = logits + table.projection(table.embedding(values[record]))
            if name != "gender":
                logits = logits + mean(network.past[name], values[record - place : record])
        expected.append(logits)
    torch.testing.assert_close(network(batch), torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("covariates", [("year", "gender"), ()])
def test_the_context_of_nemo_enters_from_the_first_record_on(covariates):
    torch.manual_seed(0)
    book = CodeBook.of(UNEVEN, ("095", "243"), covariates)
    network = ContextualLSTM(book, LOGITS, width=4, state=8, dropout=0.0)
    batch = collate(book.encode(UNEVEN), np.arange(len(CODED)))
    logits = network(batch)
    changed = {**batch, "covariates_TC": batch["covariates_TC"].clone()}
    changed["covariates_TC"][:, len(covariates) - 1 :] = 1
    differs = (network(changed) != logits).any(1)
    male = torch.tensor([gender == "male" for gender in UNEVEN.table["gender"]])
    assert torch.equal(differs, male if covariates else torch.zeros_like(male))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_share_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    values = torch.ones(400, 251, dtype=dtype)
    out = dropped(values, 0.1, training=True)
    assert out.dtype == dtype
    assert out.unique().tolist() == [0.0, torch.tensor(1 / 0.9, dtype=dtype).item()]
    assert (out == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    per_column = (out == 0).float().mean(0)
    assert per_column.max() < 0.2
    assert torch.equal(dropped(values, 0.1, training=False), values)


def test_gradients_of_dropout_are_those_of_what_was_kept():
    values = torch.ones(50, 3, requires_grad=True)
    out = dropped(values, 0.5, training=True)
    out.sum().backward()
    torch.testing.assert_close(values.grad, out.detach())


def test_positions_have_the_frequencies_of_fairseq():
    table = sinusoids(torch.tensor([2, 3]), 6)
    expected = [[math.sin(p), math.sin(p / 100), math.sin(p / 1e4)] for p in (2, 3)]
    torch.testing.assert_close(table[:, :3], torch.tensor(expected))
    torch.testing.assert_close(table[:, 3:].square() + table[:, :3].square(), torch.ones(2, 3))
