"""What must be the same for a training to go on as if it had never stopped."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from fmcli.checkpoints.checkpoint import Header, versions
from fmcli.data import Splits
from fmcli.errors import CheckpointError, printable
from fmcli.recipe import DataSpec, EnsembleSpec, MemberSpec, Recipe
from fmcli.recipe.differences import show_differences

_COMPUTING = ("fmcli", "torch")
_NONE = "none"  # of a package that is not installed
_AFRESH = "or train afresh with --overwrite"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a member is trained with.

    Args:
        recipe: The member's part of the recipe as JSON with sorted keys.
        data: SHA-256 of each split that training sees, by name.
        device: Its kind: random numbers go on there alone.
        threads: Of the CPU: with other numbers of them, sums come out otherwise.
        precision: `bf16` or `fp32`, which a recipe may leave to the device.
        versions: Of what computes.
    """

    recipe: str
    data: Mapping[str, str]
    device: str
    threads: int
    precision: str
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls,
        spec: MemberSpec,
        recipe: Recipe,
        splits: Splits,
        device: torch.device,
        *,
        bf16: bool,
        threads: int | None = None,
    ) -> "Fingerprint":
        """Return those of a member of a recipe in this process, or in one of so many threads."""
        computing = computing_versions(versions(), kernels=bf16 and device.type == "cpu")
        if spec.augment.albumentations:
            computing |= {name: metadata.version(name) for name in ("albumentations", "numpy")}
        return cls(
            recipe=_member_recipe(spec, recipe.data, recipe.ensemble),
            data=digests_of_training(splits),
            device=device.type,
            threads=threads or torch.get_num_threads(),
            precision="bf16" if bf16 else "fp32",
            versions=computing,
        )

    @classmethod
    def of_header(cls, header: Header) -> "Fingerprint":
        """Return those that a finished member was trained with, as its checkpoint tells them.

        Raises:
            CheckpointError: It does not tell.
        """
        try:
            device, threads, precision = (header.trained_on[key] for key in ("device", "threads", "precision"))
            n_threads = int(threads)
            if n_threads < 1:
                raise ValueError(threads)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint of {printable(header.name)} lacks what it was trained on",
                hint="delete its folder and resume, which trains that member again",
            ) from error
        return cls(
            recipe=_recipe_of_header(header),
            data=header.data_digests,
            device=device if device in ("cpu", "mps") else "cuda",  # of which it tells the model's name
            threads=n_threads,
            precision=precision,
            versions=computing_versions(header.versions, kernels=device == "cpu" and precision == "bf16"),
        )

    def check_header(self, header: Header, *, member: str, folder: Path) -> None:
        """Refuse a checkpoint of another recipe or other images; see `check_recipe_and_data`."""
        self.check_recipe_and_data(_recipe_of_header(header), header.data_digests, member=member, folder=folder)

    def check_recipe_and_data(self, recipe: str, data: Mapping[str, str], *, member: str, folder: Path) -> None:
        """Refuse what an earlier process left of another recipe or other images.

        Args:
            recipe: The recipe that it was trained with, as in `Fingerprint`.
            data: SHA-256 of those splits, by name.
            member: Whose it is.
            folder: Where it lies.

        Raises:
            CheckpointError: It is of others.
        """
        for split, digest in self.data.items():
            if data.get(split) != digest:
                raise CheckpointError(
                    f"member {member} in {printable(folder)} was begun on other {split} images",
                    hint=f"bring the data back, {_AFRESH}",
                )
        if recipe != self.recipe:
            differences = show_differences(json.loads(recipe), json.loads(self.recipe))
            raise CheckpointError(
                f"member {member} in {printable(folder)} was begun with another recipe:\n  "
                + "\n  ".join(differences[:10]),
                hint=f"restore these values in the recipe, {_AFRESH}",
            )

    def check(self, begun: "Fingerprint", *, member: str, folder: Path) -> None:
        """Refuse to go on with a member where its numbers would come out otherwise than without a stop.

        Args:
            begun: With what the training was begun.
            member: Who is trained.
            folder: Where its files lie.

        Raises:
            CheckpointError: They would, saying why.
        """
        self.check_recipe_and_data(begun.recipe, begun.data, member=member, folder=folder)
        for before, now, way_back in self._differences(begun):
            raise CheckpointError(
                f"member {member} was begun {before}, and would go on {now}: its numbers would come out otherwise",
                hint=f"{way_back}, {_AFRESH}",
            )

    def check_finished(self, finished: "Fingerprint", *, member: str, folder: Path) -> None:
        """Refuse to train the other members of a run otherwise than one that is finished.

        Args:
            finished: With what it was trained.
            member: Which one.
            folder: Where its files lie.

        Raises:
            CheckpointError: They would be, saying how.
        """
        self.check_recipe_and_data(finished.recipe, finished.data, member=member, folder=folder)
        for before, now, way_back in self._differences(finished):
            raise CheckpointError(
                f"member {member} was trained {before}, and what is left of its run would be trained {now}",
                hint=f"{way_back}; or train the others elsewhere with --output",
            )

    def check_unchanged(self, expected: "Fingerprint", *, member: str) -> None:
        """Refuse to begin a member otherwise than was planned when its run began, perhaps hours before.

        Args:
            expected: With what it was to be trained then.
            member: Which one.

        Raises:
            CheckpointError: Something has changed since, saying what.
        """
        for split, digest in expected.data.items():
            if self.data.get(split) != digest:
                raise CheckpointError(
                    f"the {split} images have changed since the run began: member {member} would learn from others",
                    hint=f"bring them back and go on with --resume, {_AFRESH}",
                )
        for before, now, way_back in self._differences(expected):
            raise CheckpointError(
                f"the run was begun {before}, and member {member} would be trained {now}",
                hint=f"{way_back} and go on with --resume, {_AFRESH}",
            )

    def _differences(self, begun: "Fingerprint") -> Iterator[tuple[str, str, str]]:
        """Yield how it was, how it is, and what brings that back, for each thing that changes numbers."""
        if begun.device != self.device:
            yield f"on {begun.device}", f"on {self.device}", f"--device {begun.device}"
        if begun.precision != self.precision:
            yield f"in {begun.precision}", f"in {self.precision}", "go on on the machine that it was begun on"
        for package, version in begun.versions.items():
            now = self.versions.get(package, _NONE)
            if now != version:
                way_back = f"uninstall {package}" if version == _NONE else f"install {package} {version} again"
                yield _with(package, version), _with(package, now), way_back
        if begun.threads != self.threads and self.device == "cpu":
            yield f"with {_count(begun.threads)}", f"with {self.threads}", f"--threads {begun.threads}"


def _member_recipe(member: MemberSpec, data: DataSpec, ensemble: EnsembleSpec) -> str:
    tables = {f"members.{member.name}": member, "data": data, "ensemble": ensemble}
    return json.dumps({key: spec.model_dump(mode="json") for key, spec in tables.items()}, sort_keys=True)


def _recipe_of_header(header: Header) -> str:
    return _member_recipe(header.member, header.data, header.ensemble)


def digests_of_training(splits: Splits) -> dict[str, str]:
    """Return the SHA-256 of each split that training sees, by name."""
    return {name: images.digest for name, images in splits.present().items() if name != "test"}


def computing_versions(all_versions: Mapping[str, str], *, kernels: bool = False) -> dict[str, str]:
    """Return the versions of what computes, of those that a checkpoint tells; with what compiles kernels, if asked."""
    computing = {name: version for name, version in all_versions.items() if name in _COMPUTING}
    return computing | ({"numba": all_versions.get("numba", _NONE)} if kernels else {})


def _with(package: str, version: str) -> str:
    return f"without {package}" if version == _NONE else f"with {package} {version}"


def _count(threads: int) -> str:
    return "1 CPU thread" if threads == 1 else f"{threads} CPU threads"
