"""`fmcli evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.command import OUTPUT
from fmcli.cli.member_pool import open_members, published_references, warn_normalization
from fmcli.cli.plotters import write_member_plots
from fmcli.errors import printable

SavePredictions = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Also write each member's predictions to this folder. For one member, you can give a .safetensors file.",
        rich_help_panel=OUTPUT,
    ),
]


def evaluate(
    members: options.Members,
    split: options.Split = "test",
    tta: options.TestTimeViews = "none",
    labels: options.Labels = None,
    format_: options.FormatOption = "table",
    save_predictions: SavePredictions = None,
    plots: options.Plots = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
) -> None:
    """Score each member on its own: accuracy, scores per class, confusion matrix and calibration.

    Examples:
        fmcli evaluate checkpoints/quick
        fmcli evaluate checkpoints/quick/k3 --split validation
        fmcli evaluate checkpoints/quick --save-predictions predictions
    """
    from fmcli.ensemble import evaluate_member
    from fmcli.members.predict import predict_pool
    from fmcli.members.saving import find_other_predictions, write_predictions
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.evaluation import evaluation_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal, labels=labels, together=False)
    warn_normalization(pool, split, terminal)
    predictions = predict_pool(pool, split, data_root=data_root, labels=labels, views=tta)
    if save_predictions is not None:
        written = write_predictions(save_predictions, predictions, views=tta)
        for path in written:
            terminal.detail(f"wrote {printable(path)}")
        if save_predictions.is_dir() and (others := find_other_predictions(written)):
            names = ", ".join(printable(path.parent.name) for path in others)
            terminal.note(
                f"{printable(save_predictions)} also has predictions from {names}; they vote together if you give the "
                "folder to an ensemble command"
            )
    evaluations = [evaluate_member(member) for member in predictions]
    emit(evaluation_document(evaluations, split, published_references(pool)), format_, terminal)
    if plots is not None:
        write_member_plots(plots, pool, predictions, data_root, terminal)
