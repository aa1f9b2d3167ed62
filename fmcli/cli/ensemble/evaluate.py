"""`fmcli ensemble evaluate`."""

from fmcli.cli import options
from fmcli.cli.member_pool import choose_rule, open_members, published_references, warn_biased_vote, warn_normalization
from fmcli.cli.plotters import evaluation_plotters, write_plots
from fmcli.errors import Remedy, UsageError


def evaluate(
    members: options.Members,
    split: options.Split = "test",
    tta: options.TestTimeViews = "none",
    labels: options.Labels = None,
    vote: options.Vote = None,
    weights: options.Weights = None,
    tie: options.Tie = None,
    groups: options.Groups = None,
    format_: options.FormatOption = "table",
    plots: options.Plots = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
) -> None:
    """Score a vote and each of its members.

    The report answers three questions. Is the gain significant? What does each member contribute? Are the
    probabilities calibrated? Weights, stacking and the temperature are fitted on validation images only.

    Examples:
        fmcli ensemble evaluate checkpoints/quick
        fmcli ensemble evaluate checkpoints/quick --vote weighted-soft
        fmcli ensemble evaluate predictions/*.npy --labels labels.csv
    """
    from fmcli.ensemble import evaluate_ensemble
    from fmcli.ensemble.rules import rules_where
    from fmcli.members.vote import vote_on_split
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.ensemble_evaluation import ensemble_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal, labels=labels)
    combiner = choose_rule(pool, terminal, vote=vote, tie=tie, weights=weights, groups=groups)
    if groups is not None and not combiner.rule.needs_groups:
        grouped = rules_where(lambda one: one.needs_groups)
        raise UsageError(
            f"--groups needs a {' or '.join(grouped)} vote; got a {combiner.rule.name} vote",
            remedies=[Remedy("vote", name) for name in grouped],
        )
    warn_normalization(pool, split, terminal)
    result = vote_on_split(pool, combiner, split, data_root=data_root, labels=labels, views=tta)
    warn_biased_vote(pool, result.predictions, terminal)
    references = published_references(pool)
    reference = references[0] if all(other == references[0] for other in references) else None
    emit(ensemble_document(evaluate_ensemble(result), reference), format_, terminal)
    if plots is not None:
        write_plots(plots, evaluation_plotters(pool, result, data_root), terminal)
