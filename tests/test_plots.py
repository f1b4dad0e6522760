import polars as pl
import pytest
from matplotlib.image import imread

from labor_llm.comparison.plots import difference_plot, perplexity_plot, reliability_plot, save

MODELS = pl.DataFrame(
    {
        "model": ["nano-title", "markov", "a" * 30 + "-and-" + "b" * 30],
        "perplexity": [4.4, 4.7, None],
        "perplexity_low": [4.1, 4.4, None],
        "perplexity_high": [4.8, 5.0, None],
        "difference": [None, -0.05, -0.1],
        "difference_low": [None, -0.09, -0.2],
        "difference_high": [None, -0.01, 0.05],
    }
)
WEIGHTED = MODELS.with_columns(
    **{f"perplexity_weighted{end}": pl.col(f"perplexity{end}") + 0.1 for end in ("", "_low", "_high")}
)
CURVES = pl.DataFrame(
    {
        "run": ["nano $x_1^{$"] * 3 + ["markov"] * 2,
        "event": ["leave_work"] * 5,
        "forecast": [0.01, 0.05, 0.2, 0.04, 0.06],
        "rate": [0.0, 0.04, 0.25, 0.03, 0.08],
        "rate_low": [None, 0.02, 0.2, 0.02, 0.05],
        "rate_high": [None, 0.06, 0.3, 0.05, 0.1],
    }
)
FIGURES = {
    "perplexity": lambda: perplexity_plot(MODELS, 0.95),
    "weighted": lambda: perplexity_plot(WEIGHTED, 0.95),
    "differences": lambda: difference_plot(MODELS, "nano-title", 0.9),
    "reliability": lambda: reliability_plot(CURVES, 0.95),
}


def texts(figure) -> list[str]:
    axes = [ax for ax in figure.axes if ax.get_visible()]
    return [ax.get_title() for ax in axes] + [label.get_text() for ax in axes for label in ax.get_yticklabels()]


def test_a_row_per_model_that_has_the_number():
    assert texts(FIGURES["perplexity"]())[1:] == ["nano-title", "markov"]
    labels = texts(FIGURES["differences"]())[1:]
    assert labels[0] == "markov"
    assert len(labels[1]) < 50
    assert labels[1].startswith("aaa")
    assert labels[1].endswith("bbb")


def test_points_lie_where_the_numbers_are():
    (axes,) = FIGURES["weighted"]().axes
    points = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert points == {"unweighted": [4.4, 4.7], "survey-weighted": pytest.approx([4.5, 4.8])}


def test_a_panel_per_run_with_equal_axes():
    figure = FIGURES["reliability"]()
    assert len(figure.axes) == 2
    assert {axes.get_xlim() for axes in figure.axes} == {axes.get_ylim() for axes in figure.axes}
    assert list(figure.axes[0].lines[1].get_ydata()) == [0.0, 0.04, 0.25]


@pytest.mark.parametrize("name", FIGURES)
def test_files_hold_a_picture_and_are_the_same_again(name, tmp_path):
    first = save(FIGURES[name](), tmp_path, f"{name} a/b (valid)")
    assert [path.name for path in first] == [f"{name}-a-b-valid.png", f"{name}-a-b-valid.svg"]
    contents = [path.read_bytes() for path in first]
    assert [path.read_bytes() for path in save(FIGURES[name](), tmp_path, f"{name} a/b (valid)")] == contents
    picture = imread(first[0])
    assert min(picture.shape[:2]) > 150
    assert picture[..., :3].std() > 0
    assert b"<svg" in contents[1]
