"""`fmcli ensemble evaluate`."""

from fmcli.cli.member_pool import (
    choose_rule,
    open_members,
    references_of,
    refuse_needless_labels,
    warn_fitted_on,
    warn_same_predictions,
    warn_scaling,
)
from fmcli.cli.options import (
    DataRoot,
    Device,
    FormatOption,
    Groups,
    Labels,
    Members,
    Plots,
    Quiet,
    Split,
    TestTimeViews,
    Tie,
    Verbose,
    Vote,
    Weights,
)
from fmcli.cli.plotters import evaluation_drawers, write_plots
from fmcli.errors import UsageError


def evaluate(
    members: Members,
    vote: Vote = None,
    tie: Tie = None,
    weights: Weights = None,
    groups: Groups = None,
    split: Split = "test",
    tta: TestTimeViews = "none",
    labels: Labels = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    plots: Plots = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score the vote beside each of its members: is it real, what does each add, can it be trusted?

    Weights, stacking and temperature are learnt on validation data alone.

    Example: fmcli ensemble evaluate checkpoints/quick --vote weighted-soft
    """
    from fmcli.ensemble import evaluate_ensemble
    from fmcli.members import vote_on_split
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.ensemble_evaluation import ensemble_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal)
    refuse_needless_labels([pool], labels)
    rule = choose_rule(pool, terminal, vote=vote, tie=tie, weights=weights, groups=groups)
    if groups is not None and rule.vote != "two-level":
        raise UsageError("--groups is for a two-level vote", hint="add --vote two-level")
    warn_scaling(pool.checkpoints, split, terminal)
    result = vote_on_split(pool, rule, split, data_root=data_root, labels=labels, views=tta)
    warn_same_predictions(pool, result.predictions, terminal)
    warn_fitted_on(pool, result.predictions, terminal)
    references = references_of(pool)
    reference = references[0] if all(other == references[0] for other in references) else None
    emit(ensemble_document(evaluate_ensemble(result), reference), format_, terminal)
    if plots is not None:
        write_plots(plots, evaluation_drawers(pool, result, data_root), terminal)
