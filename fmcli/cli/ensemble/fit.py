"""`fmcli ensemble fit`."""

from fmcli.cli import options
from fmcli.cli.member_pool import choose_rule, open_members


def fit(
    members: options.Members,
    output: options.EnsembleOutput,
    labels: options.Labels = None,
    vote: options.Vote = None,
    weights: options.Weights = None,
    tie: options.Tie = None,
    groups: options.Groups = None,
    overwrite: options.Overwrite = False,
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
) -> None:
    """Fit the weights and temperature of a voting rule on validation images, and write an ensemble file.

    The commands evaluate, predict, plot and ensemble accept this file instead of a run.

    Example: fmcli ensemble fit checkpoints/quick --vote stacking --output quick.toml
    """
    options.refuse_to_replace(output, overwrite)

    from fmcli.members.compose import fit_ensemble, write_ensemble
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.ensemble_files import fit_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal, labels=labels)
    combiner = choose_rule(pool, terminal, vote=vote, tie=tie, weights=weights, groups=groups)
    if combiner.is_fitted:
        terminal.note("the ensemble is already fitted; writing it unchanged")
    fitted = fit_ensemble(pool, combiner, data_root=data_root, labels=labels)
    write_ensemble(output, fitted)
    accuracy = fitted.fitted_on.accuracy if fitted.fitted_on else None
    emit(fit_document(pool.names, fitted.choose_rule(), accuracy, output), format_, terminal)
