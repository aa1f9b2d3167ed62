"""`fmcli evaluate`."""

from fmcli.cli.options import (
    Checkpoints,
    DataRoot,
    Device,
    FormatOption,
    OutputFormat,
    Quiet,
    Split,
    SplitName,
    Verbose,
)


def evaluate(
    checkpoints: Checkpoints,
    split: Split = SplitName.TEST,
    device: Device = "auto",
    data_root: DataRoot = None,
    format_: FormatOption = OutputFormat.TABLE,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score each member by itself: accuracy, every class, confusions, calibration.

    Example: fmcli evaluate checkpoints/quick/k3 --split validation
    """
    from fmcli.checkpoint import find_checkpoints
    from fmcli.device import resolve_device
    from fmcli.ensemble import evaluate_member
    from fmcli.inference import load_members, predict_splits
    from fmcli.report.console import Terminal
    from fmcli.report.document import Format, emit
    from fmcli.report.evaluations import evaluation_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    members = [member for path in find_checkpoints(checkpoints) for member in load_members([path], device=where)]
    for member in members:
        terminal.detail(f"read {member.path}")
    predictions = predict_splits(members, split, device=where, data_root=data_root)
    evaluations = [evaluate_member(one) for one in predictions]
    references = [member.header.reference for member in members]
    emit(evaluation_document(evaluations, split, references), Format(format_), terminal)
