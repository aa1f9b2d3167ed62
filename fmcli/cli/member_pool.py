"""Open the members given on the command line, choose their voting rule, and warn about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.cli.thread_count import limit_threads
from fmcli.errors import UsageError, printable

if TYPE_CHECKING:
    from fmcli.choices import RuleName, TieRule
    from fmcli.ensemble import Combiner
    from fmcli.ensemble.predictions import Predictions
    from fmcli.members.pool import Pool
    from fmcli.recipe import ReferenceSpec
    from fmcli.report.console import Terminal


def open_members(
    paths: Sequence[Path], device: str, terminal: Terminal, *, labels: Path | None = None, together: bool = True
) -> Pool:
    """Load the members of runs, checkpoints, ensemble files, packs and predictions files.

    Args:
        paths: Paths from the command line.
        device: Value of `--device`.
        terminal: Prints loaded, missing and duplicate members.
        labels: Value of `--labels`.
        together: Whether the members will vote together and must therefore match.

    Raises:
        CheckpointError: A member is missing or damaged, or members do not match.
        UsageError: `labels` is given, but all members have the true classes.
    """
    from fmcli.checkpoints.layout import lost_snapshots, unfinished_members
    from fmcli.hardware.memory import keep_freed_memory
    from fmcli.members.pool import open_pool

    keep_freed_memory()
    pool = open_pool(paths, device=device, must_match=together)
    if pool.networks:
        limit_threads()
    for member in pool.networks:
        terminal.detail(f"read {printable(member.path)}")
    for path in paths:
        if names := unfinished_members(path):
            terminal.note(f"skipped members of {printable(path)} that are not trained yet: {', '.join(names)}")
        if names := lost_snapshots(path):
            terminal.note(f"skipped members of {printable(path)} whose files are missing: {', '.join(names)}")
    for name, same in pool.duplicates().items():
        terminal.note(f"{printable(name)} has the same weights as {printable(same)}, so they count twice")
    refuse_unused_labels([pool], labels)
    return pool


def refuse_unused_labels(pools: Sequence[Pool], labels: Path | None) -> None:
    """Refuse `--labels` if no member needs them.

    Raises:
        UsageError: `labels` is given, but all members have the true classes.
    """
    if labels is not None and not any(pool.has_external for pool in pools):
        raise UsageError(
            "--labels is only for predictions from other tools; these members have the true classes",
            hint="omit --labels",
        )


def choose_rule(
    pool: Pool,
    terminal: Terminal,
    *,
    vote: RuleName | None = None,
    tie: TieRule | None = None,
    weights: str | None = None,
    groups: str | None = None,
) -> Combiner:
    """Return the voting rule that the options select. Warn if the fitted rule of an ensemble is not used."""
    combiner = pool.choose_rule(vote=vote, tie=tie, weights=_parse_weights(weights), groups=_parse_groups(groups))
    if pool.combiner is not None and not combiner.is_fitted:
        terminal.note("these options change the voting rule, so the fitted weights and temperature are not used")
    return combiner


def _parse_weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--weights must be numbers separated by commas, such as 2,1,1; got {text!r}") from error


def _parse_groups(text: str | None) -> list[str] | None:
    if text is None:
        return None
    groups = [word.strip() for word in text.split(",")]
    if not all(groups):
        raise UsageError(f"--groups must be names separated by commas, such as 3,3,5; got {text!r}")
    return groups


def warn_normalization(pool: Pool, split: str, terminal: Terminal) -> None:
    """Warn about members whose recipe normalizes the pixels of this split differently from the training images."""
    for member in pool.networks:
        if split in member.training.differently_normalized:
            terminal.note(
                f"{printable(member.name)}: {split} pixels are normalized differently from training, "
                "because its recipe sets data.normalize_test"
            )


def warn_biased_vote(pool: Pool, predictions: Sequence[Predictions], terminal: Terminal) -> None:
    """Warn if predictions vote twice, or if an ensemble is scored on the images that it was fitted on.

    `open_members` has already warned about networks with the same weights.
    """
    from fmcli.ensemble.predictions import find_duplicates

    found = find_duplicates(predictions)
    duplicates = pool.duplicates() if found else {}
    for name, same in found.items():
        if name not in duplicates:
            terminal.note(f"{printable(name)} has the same predictions as {printable(same)}, so they count twice")
    if pool.fitted_on is not None and pool.fitted_on.data_digest == predictions[0].data_digest != "":
        terminal.note("the ensemble was selected or fitted on these images, so its score is too high; use --split test")


def published_references(pool: Pool) -> list[ReferenceSpec | None]:
    """Return the `[reference]` table of each member, or None if it has none."""
    return [member.training.reference if member.training else None for member in pool.members]
