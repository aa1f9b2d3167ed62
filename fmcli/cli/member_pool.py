"""What every command that uses trained members does first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.cli.thread_count import limit_threads
from fmcli.errors import UsageError, printable

if TYPE_CHECKING:
    from fmcli.checkpoints.checkpoint import Checkpoint
    from fmcli.choices import TieRule, VotingRule
    from fmcli.ensemble import Combiner
    from fmcli.ensemble.predictions import Predictions
    from fmcli.members import Pool
    from fmcli.recipe import ReferenceSpec
    from fmcli.report.console import Terminal


def open_members(places: Sequence[Path], device: str, terminal: Terminal, *, together: bool = True) -> Pool:
    """Load the members that runs, checkpoints, ensembles and files of predictions stand for.

    Args:
        places: From the command line.
        device: Where networks are wanted, as `--device` says.
        terminal: Told what is read, and which members of a run are not trained yet.
        together: They are to answer as one, and must match.

    Raises:
        CheckpointError: One is missing or broken, or does not match.
    """
    from fmcli.checkpoints.layout import lost_snapshots, unfinished_members
    from fmcli.hardware.memory import keep_freed_memory
    from fmcli.members import open_pool

    keep_freed_memory()
    pool = open_pool(places, device=device, must_match=together)
    if pool.checkpoints:
        limit_threads()
    for member in pool.checkpoints:
        terminal.detail(f"read {printable(member.path)}")
    for place, names in unfinished_members(places).items():
        terminal.note(f"not trained yet, so left out: {', '.join(names)} of {printable(place)}")
    for place, names in lost_snapshots(places).items():
        terminal.note(f"missing, though trained, so left out: {', '.join(names)} of {printable(place)}")
    for name, same in pool.duplicates().items():
        terminal.note(f"{printable(name)} has the very weights of {printable(same)}, which so count twice")
    return pool


def refuse_needless_labels(pools: Sequence[Pool], labels: Path | None) -> None:
    """Refuse `--labels` where it would do nothing.

    Raises:
        UsageError: It is given, and all members know the true classes.
    """
    if labels is not None and not any(pool.has_external for pool in pools):
        raise UsageError(
            "--labels gives the true classes to other tools' predictions, and these members know theirs",
            hint="leave it out",
        )


def warn_scaling(members: Sequence[Checkpoint], split: str, terminal: Terminal) -> None:
    """Say which members' recipes scale these images otherwise than those that they were trained on."""
    for member in members:
        header = member.header
        if header.normalization_of(split) != header.normalization:
            terminal.note(
                f"{printable(header.name)}: {split} pixels are scaled otherwise than in training, "
                "as data.normalize_test of its recipe says"
            )


def warn_same_predictions(pool: Pool, predictions: Sequence[Predictions], terminal: Terminal) -> None:
    """Say which predictions are in the vote twice; of networks, `open_members` has said it."""
    from fmcli.ensemble.predictions import find_duplicates

    found = find_duplicates(predictions)
    duplicates = pool.duplicates() if found else {}
    for name, same in found.items():
        if name not in duplicates:
            terminal.note(f"{printable(name)} has the very answers of {printable(same)}, which so count twice")


def warn_fitted_on(pool: Pool, predictions: Sequence[Predictions], terminal: Terminal) -> None:
    """Say so where an ensemble is judged on the images that it was made on."""
    if pool.fitted_on is not None and pool.fitted_on.data_digest == predictions[0].data_digest != "":
        terminal.note("this ensemble was chosen or fitted on these very images, which flatters it; --split test judges")


def choose_rule(
    pool: Pool,
    terminal: Terminal,
    *,
    vote: VotingRule | None = None,
    tie: TieRule | None = None,
    weights: str | None = None,
    groups: str | None = None,
) -> Combiner:
    """Return how to combine members, by the options of the command line, and say what of an ensemble is not used."""
    rule = pool.choose_rule(
        vote=vote,
        tie=tie,
        weights=parse_numbers(weights, "--weights"),
        groups=_parse_groups(groups),
    )
    if pool.rule is not None and not rule.is_fitted:
        terminal.note("the ensemble's own weights and temperature are not used: another rule is asked for")
    return rule


def _parse_groups(text: str | None) -> list[str] | None:
    if text is None:
        return None
    groups = [word.strip() for word in text.split(",")]
    if not all(groups):
        raise UsageError(f"--groups takes names with commas between them; got {text!r}")
    return groups


def references_of(pool: Pool) -> list[ReferenceSpec | None]:
    """Return each member's published figures, None where there are none."""
    from fmcli.members import StoredMember

    return [None if isinstance(member, StoredMember) else member.header.reference for member in pool.members]


def parse_numbers(text: str | None, option: str) -> list[float] | None:
    """Return the numbers that an option lists with commas between them.

    Raises:
        UsageError: One is no number.
    """
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} takes numbers with commas between them; got {text!r}") from error
