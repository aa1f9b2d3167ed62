"""Ensemble files: TOML files that list the members and contain the voting rule with its fitted weights.

The members are below the file's folder, and their paths are relative to it, so the folder can be moved or copied as
a whole. People may edit the file.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmcli.choices import RULE_NAMES, RuleName, SplitName, TieRule
from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.rules import make_rule
from fmcli.errors import CheckpointError, UsageError, did_you_mean, is_utf8, printable
from fmcli.storage.atomic import write_atomic
from fmcli.storage.reading import FileFormat, check_format, parse_toml, read_text

FORMAT = FileFormat(
    "fmcli-ensemble-1",
    "an ensemble file",
    hint="create one with fmcli ensemble select or fit; a recipe is for fmcli train",
)
SUFFIX = ".toml"
MAX_FILE_BYTES = 1 << 24  # enough for stacking of a dozen members with 200 classes
_HEADING = """\
# An ensemble of fmcli. Use this file wherever a command takes a run:
#   fmcli ensemble evaluate {path}
#   fmcli predict {path} photos/
"""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# NUL cannot be part of a path. This also applies to names, because packs use them as names of folders.
_PathText = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class MemberEntry(_Table):
    """A member of an ensemble file.

    Args:
        name: Name of the member.
        path: Path of the member's folder, checkpoint or predictions file, relative to the ensemble file's folder.
        weight: Weight in the vote; None for equal weights.
        group: Group, for rules that need groups; empty if unknown.
        digest: SHA-256 of the network's weights; empty for a member that has only predictions.
    """

    name: _PathText
    path: Annotated[_PathText, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0, le=1e9)] | None = None
    group: str = ""
    digest: str = ""


class FittedOn(_Table):
    """The images on which the members were selected, or to which weights and temperature were fitted.

    Args:
        split: Split of the images.
        images: Number of images.
        data_digest: SHA-256 of the images and labels.
        accuracy: Accuracy of the ensemble on these images, in [0, 1]. If the rule has fitted weights, the accuracy is
            cross-fitted: each image is classified by a rule that was fitted to other images.
    """

    split: SplitName
    images: int
    data_digest: str
    accuracy: float


class EnsembleFile(_Table, extra="allow"):
    """The content of an ensemble file; see `MemberEntry` and `Combiner`.

    The extra tables have the names of voting rules and contain their fitted values, such as `[stacking]`.
    """

    format: Literal["fmcli-ensemble-1"] = "fmcli-ensemble-1"
    vote: RuleName
    tie: TieRule
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    fitted_on: FittedOn | None = None
    members: Annotated[list[MemberEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_duplicates(self) -> Self:
        for key, values in (
            ("name", [member.name for member in self.members]),
            ("path", [str(PurePosixPath(member.path)) for member in self.members]),
        ):
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                raise ValueError(f"two members have the {key} {value!r}")
        return self

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        unweighted = [member.name for member in self.members if member.weight is None]
        if 0 < len(unweighted) < len(self.members):
            raise ValueError(
                f"give a weight to all members or to none; members without a weight: {', '.join(unweighted)}"
            )
        if all(member.weight == 0 for member in self.members):
            raise ValueError("at least one weight must be above 0")
        ungrouped = [member.name for member in self.members if not member.group]
        if make_rule(self.vote).needs_groups and ungrouped:
            raise ValueError(
                f"a {self.vote} vote needs the group of each member; members without a group: {', '.join(ungrouped)}"
            )
        return self

    @model_validator(mode="after")
    def _check_tables_of_rules(self) -> Self:
        for name, values in (self.model_extra or {}).items():
            if name not in RULE_NAMES:
                raise ValueError(f"unknown key {name!r}; {did_you_mean(name, [*type(self).model_fields, *RULE_NAMES])}")
            try:
                make_rule(name).with_parameters(values, len(self.members))
            except ValidationError as error:
                raise ValueError(f"{name}.{first_problem(error)}") from error
        return self

    def combiner(self) -> Combiner:
        """Return the fitted voting rule with its temperature."""
        weights = [member.weight for member in self.members if member.weight is not None]
        rule = make_rule(
            self.vote, tie=self.tie, weights=weights or None, groups=[member.group for member in self.members]
        )
        values = (self.model_extra or {}).get(self.vote)
        if values is not None:
            rule = rule.with_parameters(values, len(self.members))
        return Combiner(rule, self.temperature, is_fitted=True)


@dataclass(frozen=True, slots=True)
class MemberPath:
    """A member to list in an ensemble file.

    Args:
        name: Name of the member.
        path: Path of the member's folder, checkpoint or predictions file.
        digest: SHA-256 of the network's weights; empty for a member that has only predictions.
    """

    name: str
    path: Path
    digest: str = ""


def describe_ensemble(
    members: Sequence[MemberPath], combiner: Combiner, folder: Path | None, fitted_on: FittedOn | None = None
) -> EnsembleFile:
    """Return the content of an ensemble file.

    Args:
        members: The members, in the order that the rule expects.
        combiner: The fitted voting rule with its temperature.
        folder: Folder of the ensemble file; the members' paths become relative to it. None keeps them unchanged.
        fitted_on: The images to which the rule was fitted; None if nothing was fitted.

    Raises:
        UsageError: A member is outside the folder, its path is not UTF-8, or a weight is too large.
    """
    rule = combiner.rule
    weights = rule.weights or (None,) * len(members)
    groups = rule.groups or ("",) * len(members)
    parameters = rule.parameters()
    tables: dict[str, Any] = {rule.name: parameters} if parameters else {}
    return EnsembleFile(
        vote=rule.name,
        tie=rule.tie,
        temperature=combiner.temperature,
        fitted_on=fitted_on,
        members=[
            _member_entry(member, folder, weight, group)
            for member, weight, group in zip(members, weights, groups, strict=True)
        ],
        **tables,
    )


def _member_entry(member: MemberPath, folder: Path | None, weight: float | None, group: str) -> MemberEntry:
    path = member.path.as_posix() if folder is None else _path_below(member.path, folder)
    if not is_utf8(path):
        raise UsageError(
            f"the path of a member must be UTF-8 in an ensemble file; got {printable(path)}",
            hint="rename the member's folder",
        )
    try:
        return MemberEntry(name=member.name, path=path, weight=weight, group=group, digest=member.digest)
    except ValidationError as error:
        raise UsageError(
            f"an ensemble file cannot have the member {printable(member.name)}: {first_problem(error)}",
            remedies=["weights"],
        ) from error


def _path_below(path: Path, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise UsageError(
            f"{printable(path)} is not below {printable(folder)}, the folder of the ensemble file",
            hint="write the ensemble file to a folder that contains all members, e.g. checkpoints/chosen.toml",
            remedies=["output"],
        ) from None


def write_ensemble_file(path: Path, content: EnsembleFile, *, final_path: Path | None = None) -> None:
    """Write an ensemble file. If writing fails, no partial file remains.

    Args:
        path: The file.
        content: Its content.
        final_path: Path in the example commands at the top of the file, if the file will be moved. Default: `path`.

    Raises:
        UsageError: The file would be larger than `read_ensemble_file` allows.
        FmcliError: The file cannot be written.
    """
    table = content.model_dump(mode="json", exclude_none=True)
    text = (_HEADING.format(path=printable(final_path or path)) + "\n" + tomli_w.dumps(table)).encode()
    if len(text) > MAX_FILE_BYTES:
        raise UsageError(
            f"{printable(path)} would have {len(text):,} bytes; the limit is {MAX_FILE_BYTES:,}",
            hint="use fewer members or a different rule; stacking stores n_members · n_classes² coefficients",
        )
    write_atomic(path, text)


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a failed validation in one line: the key and the reason."""
    first = error.errors()[0]
    key, reason = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        choices = re.findall("'([^']*)'", first["ctx"]["expected"])
        reason = f"got {first['input']!r}; {did_you_mean(first['input'], choices)}"
    return printable(": ".join(filter(None, [key, reason])))


def is_ensemble_file(path: Path) -> bool:
    """Return whether a TOML file is an ensemble file in any version. Only its key `format` is checked."""
    try:
        return FORMAT.matches_any_version(_read_table(path).get("format"))
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
        Its content, and the paths of its members.

    Raises:
        CheckpointError: The file is missing or invalid, or the path of a member leads outside the file's folder.
    """
    table = _read_table(path)
    check_format(path, table, FORMAT)
    try:
        content = EnsembleFile.model_validate(table)
    except ValidationError as error:
        raise CheckpointError(f"{printable(path)}: {first_problem(error)}") from error
    for member in content.members:
        relative = Path(member.path)  # on Windows, this also recognizes drives and backslashes
        if relative.anchor or ".." in relative.parts:
            raise CheckpointError(
                f"{printable(path)} has a member outside its folder: {printable(member.path)}",
                hint="move the member below the folder of the ensemble file",
            )
    return content, [path.parent / member.path for member in content.members]
