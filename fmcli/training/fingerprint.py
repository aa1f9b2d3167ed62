"""Fingerprints of members, and checks that a fingerprint has not changed when a run is resumed.

A fingerprint is everything that the weights of a trained member depend on. Files of an earlier process are used only if
their fingerprint is the same.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from fmcli.checkpoints.checkpoint import Header, load_checkpoint, versions
from fmcli.checkpoints.layout import MODEL_FILE, missing_snapshots, snapshot_name
from fmcli.data import Splits
from fmcli.errors import Action, CheckpointError, Remedy, printable
from fmcli.hardware.device import use_bf16
from fmcli.networks.backbone_weights import weights_file_digest
from fmcli.recipe import DataSpec, EnsembleSpec, MemberSpec, Recipe
from fmcli.recipe.differences import show_differences

_NUMERIC_PACKAGES = ("fmcli", "torch")
_NOT_INSTALLED = "none"
_NO_ENVIRONMENT = {"device": "", "threads": "0", "precision": ""}
MAX_LISTED_DIFFERENCES = 10


@dataclass(frozen=True, slots=True)
class Wording:
    """How a message describes an earlier process, and the consequence of a difference."""

    was: str
    consequence: str  # follows "; " and contains {now}
    remedies: tuple[Action, ...]


STARTED = Wording("was started", "resuming {now} would change its results", ("overwrite",))
FINISHED = Wording("was trained", "the rest of its run would be trained {now}", ("output",))
CLAIMED = Wording("is being trained", "the rest of its run would be trained {now}", ("output",))
PLANNED = Wording("was planned", "it would now be trained {now}", ("resume", "overwrite"))


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that the weights of a trained member depend on.

    Args:
        recipe: The member's part of the recipe as JSON with sorted keys.
        index: Index of the member in the recipe, from 0. Its random numbers depend on it.
        data: SHA-256 of the training and validation images, by split.
        device: Kind of device: `cpu`, `cuda` or `mps`. Random numbers differ between them.
        threads: CPU threads. The count changes floating-point sums.
        precision: `bf16` or `fp32`. With `precision = "auto"`, it depends on the device.
        versions: Versions of the packages that compute, by name.
        weights: SHA-256 of the file of initial weights; None if all are random.
    """

    recipe: str
    index: int | None
    data: Mapping[str, str]
    device: str
    threads: int
    precision: str
    versions: Mapping[str, str]
    weights: str | None = None

    @classmethod
    def of(
        cls, spec: MemberSpec, recipe: Recipe, splits: Splits, device: torch.device, threads: int | None = None
    ) -> "Fingerprint":
        """Return the fingerprint of a member that is trained by this process.

        Args:
            spec: The member's recipe.
            recipe: The whole recipe.
            splits: The images.
            device: The training device.
            threads: Number of CPU threads. Default: the number of this process.
        """
        bf16 = use_bf16(spec.trainer.precision, device)
        packages = computing_versions(versions(), kernels=bf16 and device.type == "cpu")
        if spec.augment.albumentations:
            packages |= {name: metadata.version(name) for name in ("albumentations", "numpy")}
        return cls(
            recipe=_member_recipe(spec, recipe.data, recipe.ensemble),
            index=recipe.members.index(spec),
            data=digests_of_training(splits),
            device=device.type,
            threads=threads or torch.get_num_threads(),
            precision="bf16" if bf16 else "fp32",
            versions=packages,
            weights=None if spec.model.initial_weights is None else weights_file_digest(spec.model.initial_weights),
        )

    @classmethod
    def of_header(cls, header: Header, *, environment: bool = True) -> "Fingerprint":
        """Return the fingerprint that a finished member's checkpoint records.

        Args:
            header: The checkpoint's header.
            environment: Whether the header must have device, threads and precision.

        Raises:
            CheckpointError: The header has no device, threads or precision.
        """
        trained_on = header.trained_on if environment else _NO_ENVIRONMENT | header.trained_on
        try:
            device, threads, precision = (trained_on[key] for key in ("device", "threads", "precision"))
            n_threads = int(threads)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint of {printable(header.name)} does not record the device, threads and precision that "
                "it was trained with",
                hint="delete the member's folder and resume; this trains the member again",
            ) from error
        return cls(
            recipe=_member_recipe(header.member, header.data, header.ensemble),
            index=header.index,
            data=header.data_digests,
            device=device if device in ("cpu", "mps") else "cuda",  # the header has the model name of a GPU
            threads=n_threads,
            precision=precision,
            versions=computing_versions(header.versions, kernels=device == "cpu" and precision == "bf16"),
            weights=header.trained_on.get("initial_weights"),
        )

    def differences(
        self, earlier: "Fingerprint", *, environment: bool = True
    ) -> Iterator[tuple[str, str, str | Remedy]]:
        """Yield the differences between two fingerprints, except in the recipe.

        Args:
            earlier: The fingerprint to compare with.
            environment: Whether to compare device, precision, package versions and threads, not only images.

        Yields:
            A phrase for the earlier value, such as `on cuda`; a phrase for the current value; and how to restore the
            earlier value.
        """
        if earlier.index != self.index and None not in (earlier.index, self.index):
            remedy = "restore the order of the members in the recipe"
            yield f"at index {earlier.index} of the recipe's members", f"at index {self.index}", remedy
        for split, digest in self.data.items():
            if earlier.data.get(split) != digest:
                yield f"with different {split} images", f"with the current {split} images", "restore the images"
        if earlier.weights != self.weights:
            yield "from different initial weights", "from the current ones", "restore the file of initial weights"
        if not environment:
            return
        if earlier.device != self.device:
            yield f"on {earlier.device}", f"on {self.device}", Remedy("device", earlier.device)
        if earlier.precision != self.precision:
            yield f"in {earlier.precision}", f"in {self.precision}", "resume on the machine that started the run"
        for package, version in earlier.versions.items():
            now = self.versions.get(package, _NOT_INSTALLED)
            if now != version:
                remedy = f"uninstall {package}" if version == _NOT_INSTALLED else f"install {package} {version} again"
                yield _with_package(package, version), _with_package(package, now), remedy
        if earlier.threads != self.threads and self.device == "cpu":
            threads = "1 CPU thread" if earlier.threads == 1 else f"{earlier.threads} CPU threads"
            yield f"with {threads}", f"with {self.threads}", Remedy("threads", earlier.threads)


def _member_recipe(member: MemberSpec, data: DataSpec, ensemble: EnsembleSpec) -> str:
    tables = {f"members.{member.name}": member, "data": data, "ensemble": ensemble}
    return json.dumps({key: spec.model_dump(mode="json") for key, spec in tables.items()}, sort_keys=True)


def digests_of_training(splits: Splits) -> dict[str, str]:
    """Return the SHA-256 of the training and validation images, by split."""
    return {name: images.digest for name, images in splits.present().items() if name != "test"}


def computing_versions(all_versions: Mapping[str, str], *, kernels: bool = False) -> dict[str, str]:
    """Return the versions of the packages that the weights depend on.

    Args:
        all_versions: Versions as a checkpoint records them, by package.
        kernels: Whether to include numba, which compiles the CPU kernels.
    """
    computing = {name: version for name, version in all_versions.items() if name in _NUMERIC_PACKAGES}
    return computing | ({"numba": all_versions.get("numba", _NOT_INSTALLED)} if kernels else {})


def _with_package(package: str, version: str) -> str:
    return f"without {package}" if version == _NOT_INSTALLED else f"with {package} {version}"


def check_fingerprint(
    now: Fingerprint,
    earlier: Fingerprint,
    wording: Wording,
    *,
    member: str,
    folder: Path,
    environment: bool = True,
) -> None:
    """Refuse to train if the results would differ from the results of an earlier process.

    Args:
        now: Fingerprint of the member in this process.
        earlier: Fingerprint that the earlier process recorded.
        wording: `STARTED` for a partly trained member, `FINISHED` for a trained one, `CLAIMED` for one that another
            process is training, `PLANNED` if the run was planned by this or a parent process.
        member: Name of the member, for the message.
        folder: Folder of the member or the run, for the message.
        environment: Whether to compare device, precision, package versions and threads, not only recipe and images.

    Raises:
        CheckpointError: A fingerprint value differs.
    """
    start = f"member {member} in {printable(folder)} {wording.was}"
    lines = show_differences(json.loads(earlier.recipe), json.loads(now.recipe))
    if lines:
        raise CheckpointError(
            f"{start} with a different recipe:\n  " + "\n  ".join(lines[:MAX_LISTED_DIFFERENCES]),
            hint="restore these values in the recipe",
            remedies=wording.remedies,
        )
    for before, current, remedy in now.differences(earlier, environment=environment):
        raise CheckpointError(
            f"{start} {before}; {wording.consequence.format(now=current)}",
            hint=remedy if isinstance(remedy, str) else None,
            remedies=[*([remedy] if isinstance(remedy, Remedy) else []), *wording.remedies],
        )


def check_trained(spec: MemberSpec, folder: Path, fingerprint: Fingerprint) -> None:
    """Refuse a trained member if its recipe or images differ, or if snapshots are missing.

    Args:
        spec: The member's recipe.
        folder: The member's folder.
        fingerprint: Fingerprint of the member in this process.

    Raises:
        CheckpointError: The checkpoint does not match or is damaged, or snapshots are missing.
    """
    _check_checkpoint(folder / MODEL_FILE, spec, folder, fingerprint)
    missing = missing_snapshots(spec, folder)
    if missing:
        raise CheckpointError(
            f"member {spec.name} in {printable(folder)} is trained, but has no {' and no '.join(missing)}",
            hint="restore the missing files",
            remedies=["overwrite"],
        )


def check_snapshot(number: int, spec: MemberSpec, folder: Path, fingerprint: Fingerprint) -> None:
    """Refuse to resume a member if the snapshot of a finished cycle is missing, damaged or does not match.

    Args:
        number: Number of the snapshot, from 1.
        spec: The member's recipe.
        folder: The member's folder.
        fingerprint: Fingerprint of the member in this process.

    Raises:
        CheckpointError: The snapshot is missing, damaged or does not match.
    """
    try:
        _check_checkpoint(folder / snapshot_name(number) / MODEL_FILE, spec, folder, fingerprint)
    except CheckpointError as error:
        raise CheckpointError(
            f"member {spec.name} cannot resume without its snapshot {number}: {error.message}",
            hint="restore the file",
            remedies=["overwrite"],
        ) from error


def _check_checkpoint(path: Path, spec: MemberSpec, folder: Path, now: Fingerprint) -> None:
    earlier = Fingerprint.of_header(load_checkpoint(path, device=torch.device("cpu")).header, environment=False)
    check_fingerprint(now, earlier, STARTED, member=spec.name, folder=folder, environment=False)
