"""The fingerprint of a member's training: everything that its results depend on."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

import torch

from fmcli.checkpoints.checkpoint import Header, versions
from fmcli.data import Splits
from fmcli.errors import CheckpointError, Remedy, printable
from fmcli.recipe import DataSpec, EnsembleSpec, MemberSpec, Recipe
from fmcli.recipe.differences import show_differences

_NUMERIC_PACKAGES = ("fmcli", "torch")
_NOT_INSTALLED = "none"


@dataclass(frozen=True, slots=True)
class Difference:
    """A value in which two fingerprints differ, in words for a message.

    Args:
        before: The earlier value, such as `on cuda`.
        now: The current value, such as `on cpu`.
        remedy: How to restore the earlier value: a sentence, or an action.
    """

    before: str
    now: str
    remedy: str | Remedy


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that the results of a member's training depend on.

    Args:
        recipe: The member's part of the recipe as JSON with sorted keys.
        data: SHA-256 of the training and validation images, by split.
        device: Kind of device: `cpu`, `cuda` or `mps`. Random numbers differ between them.
        threads: CPU threads. The count changes floating-point sums.
        precision: `bf16` or `fp32`. A recipe may leave the choice to the device.
        versions: Versions of the packages that compute, by name.
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
        """Return the fingerprint of a member that is trained now.

        Args:
            spec: The member's recipe.
            recipe: The whole recipe.
            splits: The images.
            device: The training device.
            bf16: Whether to multiply in bfloat16.
            threads: CPU threads, by default those of this process.
        """
        packages = computing_versions(versions(), kernels=bf16 and device.type == "cpu")
        if spec.augment.albumentations:
            packages |= {name: metadata.version(name) for name in ("albumentations", "numpy")}
        return cls(
            recipe=_member_recipe(spec, recipe.data, recipe.ensemble),
            data=digests_of_training(splits),
            device=device.type,
            threads=threads or torch.get_num_threads(),
            precision="bf16" if bf16 else "fp32",
            versions=packages,
        )

    @classmethod
    def of_header(cls, header: Header) -> "Fingerprint":
        """Return the fingerprint that a finished member's checkpoint records.

        Raises:
            CheckpointError: The header lacks the device, the threads or the precision.
        """
        try:
            device, threads, precision = (header.trained_on[key] for key in ("device", "threads", "precision"))
            n_threads = int(threads)
            if n_threads < 1:
                raise ValueError(threads)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint of {printable(header.name)} does not record the device, threads and precision that "
                "it was trained with",
                hint="delete its folder and resume, which trains that member again",
            ) from error
        return cls(
            recipe=recipe_of_header(header),
            data=header.data_digests,
            device=device if device in ("cpu", "mps") else "cuda",  # the header has the model name of a GPU
            threads=n_threads,
            precision=precision,
            versions=computing_versions(header.versions, kernels=device == "cpu" and precision == "bf16"),
        )

    def data_differences(self, data: Mapping[str, str]) -> Iterator[Difference]:
        """Yield each split whose images differ from an earlier training.

        Args:
            data: SHA-256 of the earlier images, by split.
        """
        for split, digest in self.data.items():
            if data.get(split) != digest:
                yield Difference(f"on other {split} images", "on the current ones", "restore the images")

    def recipe_differences(self, recipe: str) -> list[str]:
        """Return a line for each recipe value that differs from an earlier training.

        Args:
            recipe: The earlier recipe, as in `Fingerprint`.
        """
        return show_differences(json.loads(recipe), json.loads(self.recipe))

    def environment_differences(self, earlier: "Fingerprint") -> Iterator[Difference]:
        """Yield each difference in device, precision, package versions and threads."""
        if earlier.device != self.device:
            yield Difference(f"on {earlier.device}", f"on {self.device}", Remedy("device", earlier.device))
        if earlier.precision != self.precision:
            yield Difference(f"in {earlier.precision}", f"in {self.precision}", "use the machine that started it")
        for package, version in earlier.versions.items():
            now = self.versions.get(package, _NOT_INSTALLED)
            if now != version:
                remedy = f"uninstall {package}" if version == _NOT_INSTALLED else f"install {package} {version} again"
                yield Difference(_with_package(package, version), _with_package(package, now), remedy)
        if earlier.threads != self.threads and self.device == "cpu":
            threads = "1 CPU thread" if earlier.threads == 1 else f"{earlier.threads} CPU threads"
            yield Difference(f"with {threads}", f"with {self.threads}", Remedy("threads", earlier.threads))


def _member_recipe(member: MemberSpec, data: DataSpec, ensemble: EnsembleSpec) -> str:
    tables = {f"members.{member.name}": member, "data": data, "ensemble": ensemble}
    return json.dumps({key: spec.model_dump(mode="json") for key, spec in tables.items()}, sort_keys=True)


def recipe_of_header(header: Header) -> str:
    """Return the recipe that a finished member was trained with, as in `Fingerprint`."""
    return _member_recipe(header.member, header.data, header.ensemble)


def digests_of_training(splits: Splits) -> dict[str, str]:
    """Return the SHA-256 of the training and validation images, by split."""
    return {name: images.digest for name, images in splits.present().items() if name != "test"}


def computing_versions(all_versions: Mapping[str, str], *, kernels: bool = False) -> dict[str, str]:
    """Return the versions of the packages that results depend on.

    Args:
        all_versions: Versions as a checkpoint records them, by package.
        kernels: Include numba, which compiles the CPU kernels.
    """
    computing = {name: version for name, version in all_versions.items() if name in _NUMERIC_PACKAGES}
    return computing | ({"numba": all_versions.get("numba", _NOT_INSTALLED)} if kernels else {})


def _with_package(package: str, version: str) -> str:
    return f"without {package}" if version == _NOT_INSTALLED else f"with {package} {version}"
