"""`fmcli evaluate`."""

from fmcli.cli.figures import write_member_plots
from fmcli.cli.members import open_members, tell_scaling
from fmcli.cli.options import (
    Checkpoints,
    DataRoot,
    Device,
    FormatOption,
    Plots,
    Quiet,
    Split,
    Verbose,
)


def evaluate(
    checkpoints: Checkpoints,
    split: Split = "test",
    device: Device = "auto",
    data_root: DataRoot = None,
    plots: Plots = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score each member by itself: accuracy, every class, confusions, calibration.

    Example: fmcli evaluate checkpoints/quick/k3 --split validation
    """
    from fmcli.device import resolve_device
    from fmcli.ensemble import evaluate_member
    from fmcli.inference import predict_splits
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.evaluations import evaluation_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    members = open_members(checkpoints, where, terminal, together=False)
    tell_scaling(members, split, terminal)
    predictions = predict_splits(members, split, device=where, data_root=data_root)
    evaluations = [evaluate_member(one) for one in predictions]
    references = [member.header.reference for member in members]
    emit(evaluation_document(evaluations, split, references), format_, terminal)
    if plots is not None:
        write_member_plots(plots, members, predictions, data_root, terminal)
