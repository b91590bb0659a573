"""The two figures: what is in them, and that no run, however odd, fails at its plots."""

import math

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from bptt.analysis.history import History, Validation
from bptt.cli.plots import BLUE, loss_plot, norm_plot
from support.drawing import quick_savefig

pytestmark = pytest.mark.usefixtures("real_plots")


def history(bpc, norms, validations=(), clip=1.0):
    made = History(clip)
    made.losses, made.grad_norm = [math.log(2) * each for each in bpc], list(norms)
    made.read = [100 * (i + 1) for i in range(len(made.losses))]
    made.validations = [Validation(step, 100 * step, bpc * math.log(2), 1.0) for step, bpc in validations]
    made.clipped = sum(norm > clip for norm in norms)
    return made


@pytest.mark.parametrize(
    ("run", "curves"),
    [
        (history([], []), []),
        (history([5.0], [0.5]), []),
        (history([5.0, 4.0], [0.0, 0.0], [(2, 4.1)]), [loss_plot]),
        (history([5.0, 4.0, 3.0], [0.0, 1e-9, 1e9], [(1, 4.1), (3, 3.2)]), [loss_plot, norm_plot]),
        (history([3.0] * 300, [1.0] * 300, clip=0.0), [loss_plot, norm_plot]),
        (history([1e30, 2e30], [1e30, 3e38], [(2, 1e30)]), [loss_plot, norm_plot]),
        (history([0.0, 0.0], [1e-40, 1e-40], [(2, 0.0)]), [loss_plot]),
    ],
)
@pytest.mark.parametrize("plot", [loss_plot, norm_plot])
def test_any_run_can_be_drawn(tmp_path, run, curves, plot):
    """An image of 8 x 4.5 inches, and in it the curve of the running mean, where two points or more can be shown."""
    plot(run, "lstm of 3 units, $x$ [b]", tmp_path / "x.png")
    image = imread(tmp_path / "x.png")[..., :3]
    assert image.shape == (540, 960, 3)
    of_the_curve = (abs(image - to_rgb(BLUE)) < 0.1).all(-1)[:470]  # the legend is below
    assert (of_the_curve.any(0).sum() > 300) == (plot in curves)


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """The axes of a plot instead of its file."""

    def of(plot, run):
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda f, path: figures.append(f) or quick_savefig(f, path))
        plot(run, "title", tmp_path / "x.png")
        return figures[0].axes[0]

    return of


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_loss(axes):
    shown = axes(loss_plot, history([5, 4, 3, 2], [1] * 4, [(2, 4.5), (4, 2.5)]))
    assert shown.get_ylabel() == "bits per character"
    assert shown.get_xlabel() == "characters read in training"
    assert list(lines(shown)["training, each update"].get_ydata()) == pytest.approx([5, 4, 3, 2])
    validation = lines(shown)["validation, last 2.500"]
    assert list(validation.get_xdata()) == [200, 400]
    assert list(validation.get_ydata()) == pytest.approx([4.5, 2.5])


def test_gradient_norm(axes):
    shown = axes(norm_plot, history([1] * 4, [0.5, 2.0, 0.5, 0.5], clip=1.0))
    assert shown.get_yscale() == "log"
    assert list(lines(shown)["each update"].get_ydata()) == [0.5, 2.0, 0.5, 0.5]
    assert list(lines(shown)["clipped above 1: 25% of updates"].get_ydata()) == [1.0, 1.0]
    assert not any("clipped" in label for label in lines(axes(norm_plot, history([1], [0.5], clip=0.0))))


def test_the_running_mean_is_one(axes):
    bpc = [float(i % 7) for i in range(1000)]
    shown = lines(axes(loss_plot, history(bpc, [1] * 1000)))["training, running mean"].get_ydata()
    for i in (0, 5, 500, 995, 999):
        around = bpc[max(0, i - 10) : i + 11]
        assert shown[i] == pytest.approx(sum(around) / len(around))
