"""What must be the same for a training to go on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from fmcli.checkpoint import Header, versions
from fmcli.data import Splits
from fmcli.errors import CheckpointError, printable
from fmcli.recipe import MemberSpec, Recipe, recipe_digest

_COMPUTING = ("fmcli", "torch")
_AFRESH = "or train afresh with --overwrite"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a member is trained with.

    Args:
        recipe: SHA-256 of the member's recipe.
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
    ) -> "Circumstances":
        """Return those of a member of a recipe in this process, or in one of so many threads."""
        computing = computing_versions(versions())
        if spec.augment.albumentations:
            computing |= {name: metadata.version(name) for name in ("albumentations", "numpy")}
        return cls(
            recipe=recipe_digest(spec, recipe.data),
            data=digests_of_training(splits),
            device=device.type,
            threads=threads or torch.get_num_threads(),
            precision="bf16" if bf16 else "fp32",
            versions=computing,
        )

    @classmethod
    def of_header(cls, header: Header) -> "Circumstances":
        """Return those that a finished member was trained with, as its checkpoint tells them.

        Raises:
            CheckpointError: It does not tell.
        """
        try:
            device, threads, precision = (header.trained_on[key] for key in ("device", "threads", "precision"))
            n_threads = int(threads)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the checkpoint of {printable(header.name)} lacks what it was trained on") from error
        return cls(
            recipe=header.recipe_digest,
            data=header.data_digests,
            device=device if device in ("cpu", "mps") else "cuda",  # of which it tells the model's name
            threads=n_threads,
            precision=precision,
            versions=computing_versions(header.versions),
        )

    def check_recipe_and_data(self, recipe: str, data: Mapping[str, str], *, member: str, folder: Path) -> None:
        """Refuse what an earlier process left of another recipe or other images.

        Args:
            recipe: SHA-256 of that recipe.
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
            raise CheckpointError(
                f"member {member} in {printable(folder)} was begun with another recipe",
                hint=f"resume with the recipe.toml of the run, {_AFRESH}",
            )

    def check(self, begun: "Circumstances", *, member: str, folder: Path) -> None:
        """Refuse to go on where the numbers would come out otherwise than without a stop.

        Args:
            begun: With what the training was begun.
            member: Who is trained.
            folder: Where its files lie.

        Raises:
            CheckpointError: They would, saying why.
        """
        self.check_recipe_and_data(begun.recipe, begun.data, member=member, folder=folder)
        if begun.device != self.device:
            raise CheckpointError(
                f"member {member} was begun on {begun.device}; its random numbers cannot go on on {self.device}",
                hint=f"--device {begun.device}, {_AFRESH}",
            )
        if begun.precision != self.precision:
            raise CheckpointError(
                f"member {member} was begun in {begun.precision}, and this device would go on in {self.precision}",
                hint=f"go on on the machine that it was begun on, {_AFRESH}",
            )
        for package, version in begun.versions.items():
            now = self.versions.get(package, "none")
            if now != version:
                raise CheckpointError(
                    f"member {member} was begun with {package} {version}, and {package} {now} may compute otherwise",
                    hint=f"install {package} {version} again, {_AFRESH}",
                )
        if begun.threads != self.threads and self.device == "cpu":
            raise CheckpointError(
                f"member {member} was begun with {_count(begun.threads)}, and with {self.threads} sums come out "
                "otherwise",
                hint=f"--threads {begun.threads}, {_AFRESH}",
            )


def digests_of_training(splits: Splits) -> dict[str, str]:
    """Return the SHA-256 of each split that training sees, by name."""
    return {name: images.digest for name, images in splits.present().items() if name != "test"}


def computing_versions(all_versions: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of what computes, of those that a checkpoint tells."""
    return {name: version for name, version in all_versions.items() if name in _COMPUTING}


def _count(threads: int) -> str:
    return "1 CPU thread" if threads == 1 else f"{threads} CPU threads"
