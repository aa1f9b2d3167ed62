"""`fmcli ensemble evaluate`."""

from fmcli.cli import options
from fmcli.cli.member_pool import choose_rule, open_members, published_references, warn_biased_vote, warn_normalization
from fmcli.cli.plotters import evaluation_plotters, write_plots
from fmcli.errors import Remedy, UsageError


def evaluate(
    members: options.Members,
    vote: options.Vote = None,
    tie: options.Tie = None,
    weights: options.Weights = None,
    groups: options.Groups = None,
    split: options.Split = "test",
    tta: options.TestTimeViews = "none",
    labels: options.Labels = None,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    plots: options.Plots = None,
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Score a vote and each of its members.

    The report answers three questions. Is the gain significant? What does each member contribute? Are the
    probabilities calibrated? Weights, stacking and the temperature are fitted on validation images only.

    Example: fmcli ensemble evaluate checkpoints/quick --vote weighted-soft
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
