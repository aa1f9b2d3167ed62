"""The contents and files of figures, and the commands that draw them."""

import shutil
import string
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn.metrics
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from fmcli.checkpoints.history import HISTORY_FILE
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import FIGURES
from fmcli.cli import run
from fmcli.cli.plotters import curve_plotters
from fmcli.errors import CheckpointError, DataError, FmcliError, UsageError
from fmcli.events import EpochFinished
from fmcli.metrics.calibration import reliability_bins
from fmcli.metrics.classification import precision_recall_curves
from fmcli.metrics.coverage import accuracy_at_coverage, coverage_curve
from fmcli.recipe import TrainerSpec
from fmcli.report import plots
from fmcli.report.plots.class_counts import class_count_figure
from fmcli.report.plots.classified import ClassifiedSplit
from fmcli.report.plots.confidence import coverage_figure, reliability_figure
from fmcli.report.plots.confusion import confusion_figure
from fmcli.report.plots.curves import curve_figure
from fmcli.report.plots.files import check_ending, save_figure
from fmcli.report.plots.images import mistake_figure, prediction_figure, sample_figure
from fmcli.report.plots.precision_recall import precision_recall_figure
from fmcli.report.plots.style import MARKERS, PALETTE, shorten, text_width
from tests.helpers import TINY_RECIPE, Result, draw_quadrants, write_idx_folder

NAMES = ("coat", "bag", "shirt", "dress")
ODD_NAMES = ("$5 to $10", r"\frac{1}{2}$x$", "a_{b}^c", "W" * 60, "tab\tand\nline", "naïve", "عربى", "x" * 30 + " 12")
SEEDS = pytest.mark.parametrize("seed", range(3))


def draw_classified(n_classes=4, n=80, *, seed=0, names=NAMES, bonus=3.0) -> tuple[np.ndarray, ClassifiedSplit]:
    """Return images (N, 1, 6, 6) and mostly correct predictions. `bonus` is added to the logit of the true class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    logits = generator.normal(size=(n, n_classes))
    logits[np.arange(n), labels] += bonus
    odds = np.exp(logits)
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    images = generator.integers(0, 256, (n, 1, 6, 6)).astype(np.uint8)
    return images, ClassifiedSplit("k3", "test", tuple(names), labels, probabilities.argmax(axis=1), probabilities)


def draw_history(member="k3", n=4, *, retrained=False, validation=True, rise=0.0) -> list[EpochFinished]:
    return [
        EpochFinished(
            member=member,
            epoch=epoch,
            lr=1e-3,
            train_loss=2 / epoch + rise,
            train_accuracy=1 - 0.5 / epoch,
            validation_loss=1 / epoch + rise if validation else None,
            validation_accuracy=1 - 0.4 / epoch if validation else None,
            seconds=1.0,
            images_per_second=100.0,
            retrained=retrained,
        )
        for epoch in range(1, n + 1)
    ]


def all_figures(names, n=24) -> dict[str, Figure]:
    images, classified = draw_classified(len(names), n, names=names, bonus=1.5)
    return {
        "samples": sample_figure(images, classified.labels, names, source="drawn"),
        "class-counts": class_count_figure({"train": np.bincount(classified.labels)}, names, source="drawn"),
        "curves": curve_figure({name: draw_history(name) for name in names}, of="drawn", best={names[0]: 2}),
        "confusion": confusion_figure(classified),
        "precision-recall": precision_recall_figure(classified),
        "reliability": reliability_figure(classified),
        "coverage": coverage_figure(classified),
        "predictions": prediction_figure(images, classified),
        "mistakes": mistake_figure(images, classified),
    }


def texts(artist) -> list[str]:
    return [text.get_text() for text in artist.findobj(Text) if text.get_text()]


def lines(axes) -> list:
    return [line for line in axes.get_lines() if line.get_linestyle() != "None"]


# --- numbers ----------------------------------------------------------------------------------------------


@SEEDS
def test_precision_recall_curves_agree_with_scikit_learn(seed):
    _, classified = draw_classified(seed=seed, bonus=1.0)
    for label, curve in enumerate(precision_recall_curves(classified.probabilities, classified.labels)):
        one, likely = classified.labels == label, classified.probabilities[:, label]
        assert curve.average_precision == pytest.approx(sklearn.metrics.average_precision_score(one, likely))
        # Points that do not change the curve may be missing; the area under it stays the same.
        assert curve.average_precision == pytest.approx(-np.sum(np.diff(curve.recall) * curve.precision[:-1]), abs=0.02)
        assert (curve.recall[0], curve.recall[-1]) == (1, 0)
        assert (np.diff(curve.recall) <= 0).all()


def test_perfect_predictions_have_an_area_of_one_under_the_precision_recall_curve():
    labels = np.arange(12) % 3
    assert [curve.average_precision for curve in precision_recall_curves(np.eye(3)[labels], labels)] == [1, 1, 1]


@SEEDS
@pytest.mark.parametrize("bins", [1, 7, 15])
def test_reliability_bins_equal_a_slow_loop(seed, bins):
    _, classified = draw_classified(seed=seed, bonus=1.0)
    result = reliability_bins(classified.probabilities, classified.labels, bins=bins)
    error = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(classified.probabilities, classified.labels, strict=True)
            if low < row.max() <= high
        ]
        assert result.counts[index] == len(inside)
        if not inside:
            assert np.isnan(result.confidence[index])
            assert np.isnan(result.accuracy[index])
            continue
        confidence, accuracy = np.mean([p for p, _ in inside]), np.mean([correct for _, correct in inside])
        assert (result.confidence[index], result.accuracy[index]) == pytest.approx((confidence, accuracy))
        error += len(inside) / len(classified.labels) * abs(confidence - accuracy)
    assert result.ece == pytest.approx(error)


# --- samples, class counts --------------------------------------------------------------------------------


def test_samples_have_a_row_for_each_class():
    images, classified = draw_classified()
    labels = np.where(classified.labels == 1, 0, classified.labels)  # none of class 1
    figure = sample_figure(images, labels, NAMES, source="drawn, train", each=5)
    (axes,) = figure.axes
    assert len(axes.images) == 15
    assert len({image.get_extent()[2] for image in axes.images}) == 3  # rows
    assert [text for text in texts(axes) if text in NAMES] == list(NAMES)
    assert texts(axes).count("no images") == 1
    assert "drawn, train" in texts(figure)
    np.testing.assert_array_equal(axes.images[0].get_array()[..., 0], images[0, 0])


def test_class_counts_have_a_panel_for_each_split():
    counts = {"train": np.array([1200, 0, 30, 4]), "test": np.array([5, 6, 7, 8])}
    figure = class_count_figure(counts, NAMES, source="drawn")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["train: 1,234", "test: 26"]
    for axes, of_split in zip(figure.axes, counts.values(), strict=True):
        assert [bar.get_width() for bar in axes.patches] == of_split.tolist()
        assert set(texts(axes)) >= {f"{count:,}" for count in of_split}
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(NAMES)


# --- curves -----------------------------------------------------------------------------------------------


def test_curves_show_every_member_and_both_kinds_of_images():
    histories = {"k3": draw_history("k3"), "k5": draw_history("k5", 6, rise=0.5)}
    figure = curve_figure(histories, of="quick")
    loss, accuracy = figure.axes
    assert (loss.get_title(loc="left"), accuracy.get_title(loc="left")) == ("Loss (nats)", "Accuracy")
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    drawn = [line.get_ydata().tolist() for line in lines(loss)]
    for history in histories.values():
        assert [epoch.train_loss for epoch in history] in drawn
        assert [epoch.validation_loss for epoch in history] in drawn
    assert len(drawn) == len(lines(accuracy)) == 4
    assert len({line.get_linestyle() for line in lines(loss)}) == 2
    assert {"k3", "k5", "validation", "training (mean over the epoch)"} <= set(texts(figure))
    assert "best epoch" not in texts(figure)


def test_the_best_epoch_is_marked_with_a_ring():
    figure = curve_figure({"k3": draw_history()}, of="quick", best={"k3": 3})
    for axes in figure.axes:
        (ring,) = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
        assert ring.get_xdata() == [3]
    assert "best epoch" in texts(figure)


def test_retraining_has_its_own_panels():
    figure = curve_figure(
        {"k3": [*draw_history(n=5), *draw_history(n=2, retrained=True)], "k5": draw_history()}, of="r"
    )
    assert len(figure.axes) == 4
    first, second = figure.axes[0], figure.axes[2]
    assert "retrained" not in first.get_title(loc="left")
    assert "retrained" in second.get_title(loc="left")
    assert [len(line.get_xdata()) for line in lines(first)] == [5, 5, 4, 4]
    assert [len(line.get_xdata()) for line in lines(second)] == [2, 2]


def test_without_validation_images_only_training_curves_are_drawn():
    figure = curve_figure({"k3": draw_history(validation=False)}, of="quick", best={"k3": 1})
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 1]
    assert "validation" not in texts(figure)


def test_fifty_members_have_different_colours_or_markers():
    figure = curve_figure({f"member {number}": draw_history() for number in range(50)}, of="many")
    looks = [(line.get_color(), line.get_marker()) for line in lines(figure.axes[0])]
    assert len(set(looks)) == 50
    assert len(PALETTE) * len(MARKERS) == 56


def test_curves_without_epochs_are_refused():
    with pytest.raises(CheckpointError, match="no epoch is finished"):
        curve_figure({"k3": []}, of="quick")


# --- confusion, precision and recall, reliability ---------------------------------------------------------


def test_confusion_matrix_shows_every_count_and_colours_only_mistakes():
    _, classified = draw_classified(bonus=1.0)
    counts = sklearn.metrics.confusion_matrix(classified.labels, classified.predicted)
    figure = confusion_figure(classified)
    axes = figure.axes[0]
    written = {text.get_position(): text.get_text() for text in axes.texts if text.get_text() != "recall"}
    for (row, column), count in np.ndenumerate(counts):
        assert written.get((column, row)) == (str(count) if count else None)
    dots = next(line for line in axes.get_lines())
    assert len(dots.get_xdata()) == (counts == 0).sum()
    colours = axes.images[0].get_array()
    assert np.ma.getmaskarray(colours).tolist() == np.eye(4, dtype=bool).tolist()
    np.testing.assert_allclose(colours.filled(0), np.where(np.eye(4), 0, counts / counts.sum(axis=1, keepdims=True)))
    assert [label.get_text() for label in axes.get_xticklabels()] == list(NAMES)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    recalls = [f"{100 * recall:.1f} %" for recall in counts.diagonal() / counts.sum(axis=1)]
    assert set(recalls) <= set(texts(figure))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "actual class")


def luminance(colour) -> float:
    channels = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


def test_counts_have_enough_contrast_on_every_colour():
    labels = np.repeat(np.arange(20), 200)
    choices = np.concatenate([[*range(row % 20)] * 9 + [row] * 200 for row in range(20)])[: len(labels)]
    classified = ClassifiedSplit("k3", "test", tuple("abcdefghijklmnopqrst"), labels, choices, np.eye(20)[choices])
    axes = confusion_figure(classified).axes[0]
    heat = axes.images[0]
    cells = heat.cmap(heat.norm(heat.get_array()))
    for text in axes.texts:
        if text.get_text().replace(",", "").isdigit():
            column, row = text.get_position()
            light, dark = sorted((luminance(text.get_color()), luminance(cells[row, column][:3])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 3.5


def test_a_confusion_matrix_without_mistakes_is_drawn():
    labels = np.arange(8) % 4
    classified = ClassifiedSplit("k3", "test", NAMES, labels, labels, np.eye(4)[labels])
    assert "100.00 % of 8 images correct" in " ".join(texts(confusion_figure(classified)))


def test_precision_recall_has_a_panel_for_each_class_with_its_area():
    _, classified = draw_classified(bonus=1.0)
    figure = precision_recall_figure(classified)
    curves = precision_recall_curves(classified.probabilities, classified.labels)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == list(NAMES)
    for axes, curve in zip(panels, curves, strict=True):
        assert f"area {curve.average_precision:.4f}" in texts(axes)
        assert axes.get_xlim() == axes.get_ylim() == (0, 1.02)


def test_a_class_without_images_has_no_precision_recall_curve():
    _, classified = draw_classified()
    without = replace(classified, labels=np.where(classified.labels == 2, 0, classified.labels))
    with pytest.raises(DataError, match="class 'shirt' has no test images"):
        precision_recall_figure(without)


def test_reliability_shows_accuracy_count_and_error():
    _, classified = draw_classified(n=300, bonus=1.0)
    bins = reliability_bins(classified.probabilities, classified.labels)
    figure = reliability_figure(classified)
    above, below = figure.axes
    filled = bins.counts > 0
    bars = [bar for bar in above.patches if isinstance(bar, Rectangle)]
    assert [bar.get_height() for bar in bars] == pytest.approx(bins.accuracy[filled].tolist())
    assert [bar.get_x() for bar in bars] == pytest.approx(bins.edges[:-1][filled].tolist())
    assert [bar.get_height() for bar in below.patches] == bins.counts[filled].tolist()
    assert set(texts(below)) >= {f"{count:,}" for count in bins.counts[filled]}
    assert f"expected calibration error {100 * bins.ece:.2f} %" in " ".join(texts(figure))


def test_coverage_figure_shows_the_curve_and_three_accuracies():
    _, classified = draw_classified(n=300, bonus=1.0)
    curve = coverage_curve(classified.confidence, classified.correct)
    figure = coverage_figure(classified)
    above, below = figure.axes
    coverage, accuracy = above.lines[0].get_data()
    assert (coverage[0], accuracy[0]) == (1, classified.correct.mean())
    assert set(zip(coverage, accuracy, strict=True)) <= set(zip(curve.coverage, curve.accuracy, strict=True))
    assert below.lines[0].get_ydata()[0] == classified.confidence.min()
    assert f"{100 * accuracy_at_coverage(curve, 0.8):.2f} %" in texts(above)


# --- predictions, mistakes --------------------------------------------------------------------------------


def test_correct_and_wrong_predictions_differ_without_colour():
    images, classified = draw_classified(bonus=1.0)
    figure = prediction_figure(images, classified, max_images=24)
    (axes,) = figure.axes
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    marks = [text for text in texts(axes) if text[0] in "✓✗"]
    shown = np.unique(np.linspace(0, 79, 24).round().astype(int))
    assert len(axes.images) == len(frames) == len(marks) == len(shown)
    for index, frame, mark in zip(shown, frames, marks, strict=True):
        correct = bool(classified.correct[index])
        assert mark == f"{'✓' if correct else '✗'} {NAMES[classified.predicted[index]]}"
        assert (frame.get_linestyle() in ("-", "solid")) == correct
        sure = f"{100 * classified.probabilities[index].max():.1f} % sure · #{index}"
        assert sure in texts(axes)
    assert texts(axes).count("actual: bag") == int((classified.labels[shown] == 1).sum())


def test_mistakes_with_the_highest_confidence_come_first():
    images, classified = draw_classified(n=200, bonus=1.0)
    (axes,) = mistake_figure(images, classified, max_images=12).axes
    assert len(axes.images) == 12
    assert not any("✓" in text for text in texts(axes))
    numbers = [int(text.partition("#")[2]) for text in texts(axes) if " sure · #" in text]
    sure = classified.probabilities.max(axis=1)
    wrong = sorted(np.flatnonzero(~classified.correct), key=lambda index: -sure[index])
    assert numbers == wrong[:12]


def test_without_mistakes_there_is_no_mistake_figure():
    images, classified = draw_classified()
    with pytest.raises(DataError, match="classifies all 80 test images correctly"):
        mistake_figure(images, replace(classified, predicted=classified.labels))


@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 20, 5), (1, 5, 20), (2, 6, 6)])
def test_images_of_any_shape_keep_their_proportions(shape):
    _, classified = draw_classified()
    images = np.zeros((80, *shape), dtype=np.uint8)
    samples = sample_figure(images, classified.labels, NAMES, source="drawn", each=2)
    for figure in (samples, prediction_figure(images, classified, max_images=2)):
        left, right, bottom, top = figure.axes[0].images[0].get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(shape[2] / shape[1])


# --- all figures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a",) * 2, ODD_NAMES], ids=["two", "odd"])
def test_no_text_in_a_figure_is_cut_off_or_parsed_as_mathematics(names, tmp_path):
    names = tuple(f"{name}{number}" for number, name in enumerate(names))
    for kind, figure in all_figures(names).items():
        save_figure(figure, tmp_path / f"{kind}.png")
        page = figure.bbox
        for text in figure.findobj(Text):
            if text.get_visible() and text.get_text().strip():
                assert not text.get_parse_math(), text
                box = text.get_window_extent()
                outside = max(page.x0 - box.x0, page.y0 - box.y0, box.x1 - page.x1, box.y1 - page.y1)
                assert outside < 3 or not text.axes, (kind, text)


def test_forty_classes_are_drawn():
    names = tuple(f"a rather long name of class {number}" for number in range(40))
    images, classified = draw_classified(40, 40, names=names)
    counts = {"train": np.bincount(classified.labels)}
    for figure in (
        sample_figure(images, classified.labels, names, source="drawn"),
        class_count_figure(counts, names, source="drawn"),
        confusion_figure(classified),
        precision_recall_figure(classified),
    ):
        figure.draw_without_rendering()
        shown = {text for text in texts(figure) if text.startswith("a rather")}
        assert len(shown) == 40  # shortened names are still different


def test_the_matplotlibrc_of_the_user_is_neither_used_nor_changed(tmp_path):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black", "font.family": "monospace"}):
        figures = all_figures(NAMES)
        save_figure(figures["reliability"], tmp_path / "figure.png")
    for figure in figures.values():
        assert to_rgb(figure.get_facecolor()) == (1, 1, 1)
        assert not any(text.get_usetex() or "monospace" in text.get_fontfamily() for text in figure.findobj(Text))
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_used():
    for path in Path(plots.__file__).parent.glob("*.py"):
        assert "pyplot" not in path.read_text("utf-8")


@pytest.mark.parametrize("text", ["short", "x" * 100, "W" * 100, "$", "a long name 1", "日本語" * 20])
def test_shortened_text_fits_its_width(text):
    shown = shorten(text, 0.8, 9)
    assert text_width(shown, 9) <= 0.8
    assert shown == text or ("…" in shown and shown[0] == text[0] and shown[-1] == text[-1])


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("b.SVG", b"<?xml"), ("c.pdf", b"%PDF")])
def test_the_ending_selects_the_format_and_files_are_reproducible(tmp_path, name, magic):
    path = tmp_path / "new" / "folder" / name
    contents = []
    for _ in range(2):
        assert save_figure(class_count_figure({"train": np.arange(4)}, NAMES, source="drawn"), path) == ""
        contents.append(path.read_bytes())
    assert contents[0].startswith(magic)
    assert contents[0] == contents[1]
    assert b"Date>" not in contents[0]
    assert [file.name for file in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.png.txt", ".png"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot write a figure") as refused:
        save_figure(Figure(), tmp_path / "new" / name)
    assert ".svg" in str(refused.value.hint)
    assert not (tmp_path / "new").exists()
    assert check_ending(Path("x.PDF")) == "pdf"


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FmcliError, match="cannot write"):
        save_figure(Figure(), tmp_path / "file" / "figure.png")
    (tmp_path / "old.png").write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FmcliError, match="No space left"):
        save_figure(Figure(), tmp_path / "old.png")
    assert (tmp_path / "old.png").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "old.png"}


def test_characters_that_no_font_has_are_returned(tmp_path, monkeypatch):
    monkeypatch.setattr("fmcli.report.plots.files._characters_of", lambda _: set(string.printable))
    figure = class_count_figure({"train": np.arange(2)}, ("日本", "plain"), source="drawn")
    assert save_figure(figure, tmp_path / "figure.png") == "日本"


# --- fmcli plot, --plots ----------------------------------------------------------------------------------


def train_quietly(*arguments: object) -> str:
    """Train and return the text on standard error."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        assert run(["train", *(str(argument) for argument in arguments)]) == 0
    return err.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Write an IDX folder of drawn images, some with wrong labels, so that there are mistakes to show."""
    images, labels = draw_quadrants(200, seed=1)
    shown, truth = draw_quadrants(60, seed=2)
    labels[:40:5] = (labels[:40:5] + 1) % 4  # among the validation images
    truth[::5] = (truth[::5] + 1) % 4
    names = ("top left", "top right", "bottom left", "bottom right")
    return write_idx_folder(
        tmp_path_factory.mktemp("data") / "drawn", images, labels, test=(shown, truth), classes=names
    )


@pytest.fixture(scope="module")
def work(data, tmp_path_factory) -> Path:
    """Return a read-only folder with a recipe, its run, and the figures and messages of `train --plots`."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.toml").write_text(TINY_RECIPE.format(folder=data))
    settings = ["--set", "trainer.keep=best"]
    err = train_quietly("-r", folder / "tiny.toml", "-o", folder / "run", "--plots", folder / "plots", *settings)
    (folder / "stderr.txt").write_text(err)
    return folder


def assert_refused(result: Result, status: int, *messages: str) -> None:
    assert (result.status, result.out) == (status, ""), result.err
    assert result.err.startswith("error: ")
    assert result.err.count("hint: ") == 1
    assert "Traceback" not in result.err
    for text in messages:
        assert text in result.err


@pytest.mark.parametrize("kind", FIGURES)
def test_plot_writes_one_figure_and_prints_its_path(cli, work, tmp_path, kind):
    result = cli("plot", kind, work / "run", "--output", tmp_path / "figure.svg")
    assert result == Result(0, f"{tmp_path / 'figure.svg'}\n", "")
    words = (tmp_path / "figure.svg").read_text()
    assert words.startswith("<?xml")


def figures_drawn(monkeypatch) -> list[Figure]:
    """Return a list that collects the figures of commands instead of writing them to files."""
    figures = []
    monkeypatch.setattr("fmcli.report.plots.files.save_figure", lambda figure, _: figures.append(figure) or "")
    return figures


def test_plot_all_draws_every_figure_for_a_folder(cli, work, tmp_path, monkeypatch):
    figures = figures_drawn(monkeypatch)
    result = cli("plot", "all", work / "run", "-o", tmp_path, "--file-format", "pdf", "--split", "validation")
    assert result == Result(0, "".join(f"{tmp_path / kind}.pdf\n" for kind in FIGURES), "")
    assert len(figures) == len(FIGURES)
    assert all("validation" in " ".join(texts(figure)) for figure in figures)


def test_train_and_evaluate_draw_their_figures(cli, work, tmp_path):
    of_training = {"curves.png", "samples.png", "class-counts.png"}
    assert {path.name for path in (work / "plots").iterdir()} == of_training
    printed = (work / "stderr.txt").read_text().splitlines()
    assert {f"wrote {work / 'plots' / name}" for name in of_training} <= set(printed)
    result = cli("evaluate", work / "run", "--plots", tmp_path, "-f", "json")
    assert result.status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"k3", "k5"}
    for folder in tmp_path.iterdir():
        assert {path.name for path in folder.iterdir()} == {f"{kind}.png" for kind in FIGURES} - of_training
        assert f"wrote {folder / 'confusion.png'}" in result.err.splitlines()


@pytest.mark.parametrize("command", ["ensemble evaluate", "evaluate"])
def test_the_figures_of_one_evaluation_are_directly_in_the_folder(cli, work, tmp_path, monkeypatch, command):
    figures = figures_drawn(monkeypatch)
    result = cli(*command.split(), work / "run" / "k3", "--plots", tmp_path, "--quiet")
    assert result.err == ""
    assert len(figures) == 6
    result = cli(*command.split(), work / "run" / "k3", "--plots", tmp_path)
    assert f"wrote {tmp_path / 'mistakes.png'}" in result.err.splitlines()
    assert any(text.startswith("k3 on test: ") for text in texts(figures[0]))


def test_several_members_are_drawn_as_their_vote(cli, work, tmp_path, monkeypatch):
    figures = figures_drawn(monkeypatch)
    for paths in (["run"], ["run/k5"], ["run/k5", "run/k3"]):
        arguments = ["plot", "confusion", *(work / path for path in paths), "-o", tmp_path / "x.png"]
        assert cli(*arguments, "--vote", "soft", "--split", "validation").status == 0
    for figure, name in zip(figures, ["soft vote of k3, k5", "k5", "soft vote of k5, k3"], strict=True):
        assert any(text.startswith(f"{name} on validation: ") for text in texts(figure))
        assert any(text.endswith("% of 40 images correct") for text in texts(figure))


@pytest.mark.parametrize("keep", ["last", "best", "retrained", "snapshots"])
def test_curves_mark_the_best_epoch_if_the_recipe_keeps_it(keep):
    history, spec = draw_history(), TrainerSpec(keep=keep)
    [figure] = [draw() for draw in curve_plotters({"k3": history}, {"k3": spec}, of="quick").values()]
    assert ("best epoch" in texts(figure)) == (keep in ("best", "retrained"))


def test_curves_show_each_member_once_even_if_its_path_is_given_twice(cli, work, tmp_path, monkeypatch):
    figures = figures_drawn(monkeypatch)
    other = Path(shutil.copytree(work / "run", tmp_path / "other"))
    for paths in (["run"], ["run/k3", "run", f"run/k5/{MODEL_FILE}"], ["run/k3", other / "k3"]):
        assert cli("plot", "curves", *(work / path for path in paths), "-o", tmp_path / "x.png").status == 0
    assert {"k3", "k5", "best epoch"} <= set(texts(figures[0]))
    assert [len(lines(figure.axes[0])) for figure in figures] == [4, 4, 4]
    assert {"run/k3", "other/k3", "run, other"} <= set(texts(figures[2]))


def test_curves_of_an_unfinished_run_are_drawn(cli, work, tmp_path):
    unfinished = Path(shutil.copytree(work / "run", tmp_path / "unfinished"))
    shutil.rmtree(unfinished / "k5")
    (unfinished / "k3" / MODEL_FILE).unlink()
    assert cli("plot", "curves", unfinished, "-o", tmp_path / "curves.png").status == 0
    assert_refused(cli("plot", "confusion", unfinished, "-o", tmp_path / "x.png"), 4, "no trained member")
    (unfinished / "k3" / HISTORY_FILE).write_text("")
    assert_refused(cli("plot", "curves", unfinished, "-o", tmp_path / "x.png"), 4, "is empty")


@pytest.mark.parametrize("what", ["{work}/tiny.toml", "idx:{data}", "{work}/run", "{work}/run/k3"])
@pytest.mark.parametrize("kind", ["samples", "class-counts"])
def test_images_of_sources_recipes_and_runs_are_drawn(cli, work, data, tmp_path, kind, what, monkeypatch):
    figures = figures_drawn(monkeypatch)
    source = what.format(work=work, data=data)
    assert cli("plot", kind, source, "-o", tmp_path / "x.png").status == 0
    assert "top left" in texts(figures[0])


def test_samples_of_images_that_differ_in_size(cli, tmp_path):
    for name, size in (("cat", (8, 8)), ("dog", (9, 9))):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("L", size).save(tmp_path / "pets" / name / f"{number}.png")
    source, target = f"folder:{tmp_path}/pets", tmp_path / "x.png"
    assert_refused(cli("plot", "samples", source, "-o", target), 3, "differ in size", "use --set 'data.size=[32,32]'")
    assert cli("plot", "samples", source, "--set", "data.size=[8,8]", "-o", target).status == 0
    refused = cli("plot", "confusion", source, "--set", "data.size=[8,8]", "-o", target)
    assert_refused(refused, 2, "--set is only for the figures samples and class-counts")


def test_a_figure_without_data_is_an_error_but_plot_all_skips_it(cli, work, tmp_path, monkeypatch):
    bare = Path(shutil.copy(work / "run" / "k3" / MODEL_FILE, tmp_path / "bare.safetensors"))
    assert_refused(cli("plot", "curves", bare, "-o", tmp_path / "x" / "c.png"), 4, "no training history", HISTORY_FILE)
    assert not (tmp_path / "x").exists()
    figures = figures_drawn(monkeypatch)
    result = cli("plot", "all", bare, "-o", tmp_path / "figures")
    assert result.status == 0
    assert result.err.startswith("skipped curves: ")
    assert result.out.split() == [str(tmp_path / "figures" / f"{kind}.png") for kind in FIGURES if kind != "curves"]
    assert len(figures) == len(FIGURES) - 1


def test_predictions_files_have_the_four_figures_without_images(cli, work, tmp_path, monkeypatch):
    saved = tmp_path / "predictions"
    assert cli("evaluate", work / "run", "--save-predictions", saved).status == 0
    figures_drawn(monkeypatch)
    result = cli("plot", "all", saved, "-o", tmp_path / "figures")
    assert result.status == 0, result.err
    drawn = ("confusion", "precision-recall", "reliability", "coverage")
    assert result.out.split() == [str(tmp_path / "figures" / f"{kind}.png") for kind in FIGURES if kind in drawn]
    assert "skipped samples: k3 has stored predictions" in result.err


def test_a_very_long_figure_is_written_with_fewer_pixels(tmp_path):
    save_figure(Figure(figsize=(0.5, 1000)), tmp_path / "long.png")
    with Image.open(tmp_path / "long.png") as image:
        assert 60_000 < image.height < 1 << 16


def test_a_class_without_images_is_refused_before_anything_is_written(cli, tmp_path):
    shown, truth = draw_quadrants(40, seed=2)
    test = (shown[truth != 3], truth[truth != 3])
    folder = write_idx_folder(tmp_path / "data", *draw_quadrants(120, seed=1), test=test)
    (tmp_path / "tiny.toml").write_text(TINY_RECIPE.format(folder=folder))
    train_quietly("-r", tmp_path / "tiny.toml", "-o", tmp_path / "run", "--member", "k3", "--set", "trainer.epochs=1")
    refused = cli("plot", "precision-recall", tmp_path / "run" / "k3", "-o", tmp_path / "x" / "f.png")
    assert_refused(refused, 3, "class '3' has no test images")
    assert not (tmp_path / "x").exists()
    result = cli("ensemble", "evaluate", tmp_path / "run", "--plots", tmp_path / "x", "-f", "json")
    assert result.status == 0
    assert "skipped precision-recall: " in result.err
    assert (tmp_path / "x" / "confusion.png").is_file()


MISUSE = {
    "an ending": (["plot", "confusion", "{work}/run", "-o", "{new}.gif"], 2, "cannot write a figure"),
    "no ending": (["plot", "samples", "{work}/run", "-o", "{new}"], 2, "cannot write a figure"),
    "all into a file": (["plot", "all", "{work}/run", "-o", "{new}.png"], 2, "needs a folder"),
    "all into an existing file": (["plot", "all", "{work}/run", "-o", "{work}/tiny.toml"], 2, "needs a folder"),
    "a format for one": (
        ["plot", "curves", "{work}/run", "-o", "{new}.png", "--file-format", "png"], 2, "is only for fmcli plot all",
    ),
    "nothing there": (["plot", "confusion", "{new}", "-o", "{new}.png"], 4, "does not exist"),
    "images for a run": (["plot", "curves", "folder:pets", "-o", "{new}.png"], 4, "is a source of images, not a run"),
    "no curves there": (["plot", "curves", "{new}", "-o", "{new}.png"], 4, "does not exist"),
    "no such images": (["plot", "samples", "{new}", "-o", "{new}.png"], 2, "no such source, recipe or run"),
    "no images in it": (["plot", "samples", "{work}/plots", "-o", "{new}.png"], 4, "no trained member in"),
    "a recipe for a run": (["plot", "mistakes", "quick", "-o", "{new}.png"], 4, "does not exist"),
    "other images": (["plot", "samples", "{work}/run", "idx:{data}", "-o", "{new}.png"], 3, "have different images"),
    "no such split": (
        ["plot", "samples", "idx:{data}", "--split", "validation", "-o", "{new}.png"], 3, "no validation images",
    ),
    "no device": (["plot", "mistakes", "{work}/run", "-o", "{new}.png", "--device", "cuda:99"], 5, "cuda:99"),
    "given twice": (["plot", "confusion", "{work}/run", "{work}/run/k3", "-o", "{new}.png"], 4, "given twice"),
    "cannot write": (["plot", "class-counts", "{work}/run", "-o", "{work}/tiny.toml/x.png"], 1, "cannot write"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_an_error_with_one_hint(cli, work, data, tmp_path, case):
    arguments, status, message = MISUSE[case]
    new = tmp_path / "new"
    result = cli(*(word.format(work=work, data=data, new=new) for word in arguments))
    assert_refused(result, status, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plot", "pie", "{work}/run", "-o", "x.png"], "pie"),
        (["plot", "curves", "{work}/run"], "--output"),
        (["plot", "curves", "-o", "x.png"], "SOURCE"),
        (["evaluate", "{work}/run", "--plots", "{work}/tiny.toml"], "is a file"),
        (["train", "-r", "{work}/tiny.toml", "-o", "{work}/new", "--plots", "{work}/tiny.toml"], "is a file"),
    ],
)
def test_wrong_use_is_status_2(cli, work, arguments, message):
    result = cli(*(word.format(work=work) for word in arguments))
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert not (work / "new").exists()
