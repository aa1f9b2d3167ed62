"""The request to a source, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.choices import SOURCE_FORMS
from fmcli.data.background import Background
from fmcli.errors import DataError, printable
from fmcli.recipe.data import DataSpec

LabelledImages = tuple[NDArray[np.uint8], NDArray[Any]]
"""Images, uint8 (N, C, H, W), and labels, integers from 0, (N,)."""


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """Everything that a source may use to find and read its images.

    Args:
        spec: The recipe's `[data]` table.
        data_root: First folder to search for built-in datasets, and the parent of relative paths; or None.
    """

    spec: DataSpec
    data_root: Path | None = None

    @property
    def argument(self) -> str:
        """Text after the colon in `data.source`; empty if there is none."""
        return self.spec.source.partition(":")[2]

    def find_path(self) -> Path:
        """Return the path in `data.source`. A relative path that does not exist is taken from the data root.

        Raises:
            DataError: The path has an unknown user, or the source needs a folder and the path is not a folder.
        """
        try:
            path = Path(self.argument).expanduser()
        except RuntimeError as error:  # unknown ~user
            raise DataError(f"{printable(self.argument)}: {error}", hint="give the whole path") from error
        if self.data_root is not None and not path.exists():
            path = self.data_root / path
        if self.spec.kind.argument == "DIR" and not path.is_dir():
            form = SOURCE_FORMS[self.spec.prefix]
            raise DataError(
                f"{printable(path)} is not a folder", hint=f"data.source = '{form}' needs {self.spec.kind.description}"
            )
        return path


@dataclass(frozen=True, slots=True)
class SourceImages:
    """Images and labels of a source, which `check_splits` checks.

    Args:
        path: Folder or file that was read.
        splits: Images and labels of `train`, `test` and, if the source has its own, `validation`.
        class_names: Class names in label order; empty if the source has none.
        background: Background of the images if it is known; see `classify_background`.
        names_hint: How to name the files or arrays of each split, for the error if `train` or `test` is missing.
    """

    path: Path
    splits: Mapping[str, LabelledImages]
    class_names: tuple[str, ...] = ()
    background: Background | None = None
    names_hint: str = ""
