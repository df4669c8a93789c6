"""The drawings as matplotlib figures."""

import io

import pytest

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.report import plot_curves, plot_differences


def saved(figure):
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return len(file.getvalue())


def test_differences_as_a_figure(compared):
    comparison = compared(
        {"relu": [0.1, 0.2, 0.4], "$golu_": [0.3, 0.5, 0.6], "_x": [0.1, 0.1, 0.1], "one": [0.2]}
    )
    figure = plot_differences(comparison)
    (axes,) = figure.axes
    rows = [row for row in comparison.rows if row.difference]
    bars = [line.get_xdata() for line in axes.lines if line.get_marker() == "None"]
    ends = [tuple(x) for x in bars if len(x) == 2]
    for row in [row for row in rows if row.seeds > 1]:
        assert (row.difference.interval.low, row.difference.interval.high) in ends
    labels = [text.get_text().replace("\\", "").split("\n")[0].strip() for text in axes.get_yticklabels()]
    assert labels == [row.label for row in rows]
    assert saved(figure) > 1000


def test_curves_as_a_figure(compared):
    runs = [[{"step": s, "accuracy": s * k, "loss": 1.0} for s in (0.0, 1.0)] for k in (1.0, 3.0)]
    figure = plot_curves(compared({"_relu": [1.0, 3.0]}, curves={"_relu": runs}))
    (axes,) = figure.axes
    assert list(axes.lines[0].get_ydata()) == [0.0, 2.0]
    assert [t.get_text().strip() for t in axes.get_legend().get_texts()] == ["_relu"]
    assert saved(figure) > 1000


def test_nothing_to_draw_is_one_sentence(compared):
    with pytest.raises(WorkingPapersError, match="no difference to draw"):
        plot_differences(compared({"relu": [0.1]}))
    with pytest.raises(WorkingPapersError, match="no learning curve"):
        plot_curves(compared({"relu": [0.1]}))
    runs = [[{"step": 0.0, "loss": 1.0}, {"step": 1.0, "loss": 0.5}]]
    with pytest.raises(UnknownName, match="'loss'"):
        plot_curves(compared({"relu": [0.1]}, metric="loss", curves={"relu": runs}), "los")
