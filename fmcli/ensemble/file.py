"""Ensemble files: which members, how they are combined, and what was learnt for it; TOML, to be read and edited.

The file names its members by paths below its own folder, so that folder can be moved or copied as a whole.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmcli.choices import SplitName, TieRule, VotingRule
from fmcli.ensemble import Combiner, Stacking
from fmcli.errors import CheckpointError, UsageError, is_utf8, printable
from fmcli.storage.atomic import write_atomic
from fmcli.storage.reading import check_format, parse_toml, read_text

FORMAT = "fmcli-ensemble-1"
SUFFIX = ".toml"
MAX_FILE_BYTES = 1 << 24  # bytes: stacking of 200 classes and a dozen members
_HEADING = """\
# An ensemble of fmcli: give this file wherever a run is taken.
#   fmcli ensemble evaluate {path}
#   fmcli predict {path} photos/
"""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# No NUL; by their names, members of a pack are told apart as if they lay in folders.
_PartOfPath = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class MemberEntry(_Table):
    """A member.

    Args:
        name: What it is called.
        path: Below the file's folder: a member's folder, a checkpoint or a file of predictions.
        weight: How much it counts; None for as much as the others.
        group: What it votes within at first in a two-level vote.
        digest: Of its weights, where it has any.
    """

    name: _PartOfPath
    path: Annotated[_PartOfPath, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0, le=1e9)] | None = None
    group: str = ""
    digest: str = ""


class FittedOn(_Table):
    """The images that members, weights and temperature were learnt on.

    Args:
        split: Which.
        images: How many.
        data_digest: SHA-256 of them.
        accuracy: Of the ensemble there: of what was fitted, in folds; of what was selected, on the very images.
    """

    split: SplitName
    images: int
    data_digest: str
    accuracy: float


_Coefficient = Annotated[float, Field(ge=-1e9, le=1e9)]  # beyond which scores would not be finite


class StackingEntry(_Table):
    """A logistic regression: a row of coefficients for each class."""

    model_config = ConfigDict(strict=False)  # TOML has lists where these have tuples

    coefficients: tuple[tuple[_Coefficient, ...], ...]
    intercepts: tuple[_Coefficient, ...]


class EnsembleFile(_Table):
    """What an ensemble file says; see `MemberEntry` and `Combiner`."""

    model_config = ConfigDict(strict=False)  # TOML has lists where these have tuples

    format: Literal["fmcli-ensemble-1"] = "fmcli-ensemble-1"
    vote: VotingRule
    tie: TieRule
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    fitted_on: FittedOn | None = None
    members: Annotated[tuple[MemberEntry, ...], Field(min_length=1)]
    stacking: StackingEntry | None = None

    @model_validator(mode="after")
    def _tell_members_apart(self) -> Self:
        for what, values in (
            ("name", [member.name for member in self.members]),
            ("path", [str(PurePosixPath(member.path)) for member in self.members]),
        ):
            value, times = Counter(values).most_common(1)[0]
            if times > 1:
                raise ValueError(f"two members have the {what} {value!r}")
        return self

    @model_validator(mode="after")
    def _have_what_the_rule_needs(self) -> Self:
        weights = [member.weight for member in self.members]
        if None in weights and any(weight is not None for weight in weights):
            raise ValueError("give all members a weight, or none of them")
        if not any(weight is None or weight > 0 for weight in weights):
            raise ValueError("weights must not all be 0")
        if self.vote == "two-level" and not all(member.group for member in self.members):
            raise ValueError("a two-level vote needs each member's group")
        if self.stacking is not None:
            n_classes = len(self.stacking.intercepts)
            shape = [len(row) for row in self.stacking.coefficients]
            if shape != [n_classes * len(self.members)] * n_classes:
                raise ValueError(
                    "stacking needs a row for each class, with a coefficient for each class of each member"
                )
        return self

    def combiner(self) -> Combiner:
        """Return how the members are combined."""
        weights = [member.weight for member in self.members]
        stacking = self.stacking
        return Combiner(
            vote=self.vote,
            tie=self.tie,
            weights=None if None in weights else tuple(weight for weight in weights if weight is not None),
            groups=tuple(member.group for member in self.members),
            stacking=None
            if stacking is None
            else Stacking(np.array(stacking.coefficients), np.array(stacking.intercepts)),
            temperature=self.temperature,
            is_fitted=True,
        )


@dataclass(frozen=True, slots=True)
class MemberPath:
    """A member that an ensemble file is to name: what it is called, where it lies, and the digest of its weights."""

    name: str
    path: Path
    digest: str = ""


def describe_ensemble(
    places: Sequence[MemberPath], rule: Combiner, folder: Path | None, fitted_on: FittedOn | None = None
) -> EnsembleFile:
    """Return what an ensemble file says of members and their rule.

    Args:
        places: One a member, in the rule's order.
        rule: With all that was learnt.
        folder: Where the file is to stand; None to take the members' places as they are.
        fitted_on: The images that it was learnt on.

    Raises:
        UsageError: A member lies outside that folder, its path is not UTF-8, or a weight is far too large.
    """
    weights = rule.weights or (None,) * len(places)
    groups = rule.groups or ("",) * len(places)
    stacking = rule.stacking
    return EnsembleFile(
        vote=rule.vote,
        tie=rule.tie,
        temperature=rule.temperature,
        fitted_on=fitted_on,
        members=tuple(
            _entry(place, folder, weight, group) for place, weight, group in zip(places, weights, groups, strict=True)
        ),
        stacking=stacking
        and StackingEntry(
            coefficients=tuple(tuple(row) for row in stacking.coefficients.tolist()),
            intercepts=tuple(stacking.intercepts.tolist()),
        ),
    )


def _entry(place: MemberPath, folder: Path | None, weight: float | None, group: str) -> MemberEntry:
    path = _in_utf8(place.path.as_posix() if folder is None else _below(place.path, folder))
    try:
        return MemberEntry(name=place.name, path=path, weight=weight, group=group, digest=place.digest)
    except ValidationError as error:
        raise UsageError(
            f"an ensemble file cannot hold {printable(place.name)}: {first_problem(error)}", hint="check --weights"
        ) from error


def _in_utf8(path: str) -> str:
    if not is_utf8(path):
        raise UsageError(
            f"an ensemble file cannot name {printable(path)}, which is not UTF-8", hint="rename that folder"
        )
    return path


def _below(path: Path, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise UsageError(
            f"{printable(path)} is not below {printable(folder)}, where the ensemble file is to stand",
            hint="write it into a folder that holds all members: --output checkpoints/chosen.toml",
        ) from None


def write_ensemble_file(path: Path, content: EnsembleFile, *, shown: Path | None = None) -> None:
    """Write an ensemble file, whole or not at all.

    Args:
        path: The file.
        content: What it is to say.
        shown: Where its heading says that it is; by default the path.

    Raises:
        UsageError: It would be too large to be read again.
        FmcliError: It cannot be written.
    """
    table = content.model_dump(mode="json", exclude_none=True)
    text = (_HEADING.format(path=printable(shown or path)) + "\n" + tomli_w.dumps(table)).encode()
    if len(text) > MAX_FILE_BYTES:
        raise UsageError(
            f"{printable(path)} would have {len(text)} bytes; the limit is {MAX_FILE_BYTES}",
            hint="take fewer members, or another rule: stacking has a number for each class of each member and class",
        )
    write_atomic(path, text)


def first_problem(error: ValidationError) -> str:
    """Return where values do not fit at first, and why, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "it does not fit together"
    return f"{printable(where)}: {printable(first['msg'].removeprefix('Value error, '))}"


def is_ensemble_file(path: Path) -> bool:
    """Return whether a TOML file calls itself an ensemble file."""
    try:
        return _read_table(path).get("format") == FORMAT
    except CheckpointError:
        return False


def _read_table(path: Path) -> dict[str, Any]:
    text = read_text(path, MAX_FILE_BYTES, CheckpointError)
    try:
        return parse_toml(text)
    except ValueError as error:
        raise CheckpointError(f"cannot read {printable(path)}: {printable(error)}") from error


def read_ensemble_file(path: Path) -> tuple[EnsembleFile, list[Path]]:
    """Read an ensemble file.

    Returns:
        What it says, and where its members lie.

    Raises:
        CheckpointError: It is not there, damaged, or names a member outside its folder.
    """
    table = _read_table(path)
    check_format(
        path,
        table,
        FORMAT,
        kind="an ensemble file",
        hint="fmcli ensemble select or fit writes one; a recipe is for fmcli train",
    )
    try:
        content = EnsembleFile.model_validate(table)
    except ValidationError as error:
        raise CheckpointError(f"{printable(path)}: {first_problem(error)}") from error
    for member in content.members:
        inner = Path(member.path)  # on Windows, a drive and backslashes count
        if inner.anchor or ".." in inner.parts:
            raise CheckpointError(
                f"{printable(path)} names a member outside its folder: {printable(member.path)}",
                hint="members lie below the folder of the file that names them",
            )
    return content, [path.parent / member.path for member in content.members]
