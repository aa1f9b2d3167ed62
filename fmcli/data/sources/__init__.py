"""Sources of labelled images: one module for each prefix of `data.source`.

To add a source, add its entry to `fmcli.choices.SOURCES`, and a module here. The module is named after the prefix, with
`_` for `-`. It is imported only if the source is used, so it may import an optional package. Its functions:

- `load(request: SourceRequest) -> SourceImages` reads the images. Then `check_splits` checks them.
- `recognizes(path: Path) -> bool` returns whether a path without a prefix may be meant for this source. It is only
  needed if the source takes a path.
- `fetch(request: SourceRequest, log: Callable[[str], None]) -> Path` downloads a dataset, unless it exists, and returns
  its folder. It is only needed for built-in datasets.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fmcli.choices import BUILT_IN_SOURCES, SOURCES
from fmcli.data.image_set import Splits
from fmcli.data.sources.base import SourceRequest
from fmcli.data.sources.checks import check_splits
from fmcli.errors import DataError, did_you_mean, printable
from fmcli.recipe.data import DataSpec


def load_source(spec: DataSpec, *, data_root: Path | None = None) -> Splits:
    """Load the images of a source, in the splits of the source.

    Args:
        spec: The recipe's `[data]` table.
        data_root: First folder to search for built-in datasets; default: the environment variable `FMCLI_DATA`. Also
            the parent of a relative DIR or FILE that does not exist in the current folder.

    Raises:
        DataError: The source does not exist or is damaged, or needs a package that is not installed.
    """
    try:
        images = _module(spec.prefix).load(SourceRequest(spec, data_root))
    except ModuleNotFoundError as error:
        raise DataError(
            f"{printable(spec.source)} needs the package {error.name}", hint=f"pip install {error.name}"
        ) from error
    return check_splits(images, spec.classes)


def fetch_source(name: str, *, data_root: Path | None = None, log: Callable[[str], None] = lambda text: None) -> Path:
    """Download a built-in dataset, unless it exists, and verify it.

    Args:
        name: Name of the dataset, such as `fashion-mnist`.
        data_root: Folder to search first and to write to. Default: the user's cache.
        log: Function that is called with each progress message.

    Returns:
        Folder of the dataset.

    Raises:
        DataError: The dataset is unknown, cannot be downloaded, or differs from the published dataset.
    """
    if name not in BUILT_IN_SOURCES:
        raise DataError(f"no built-in dataset {printable(name)!r}; {did_you_mean(name, list(BUILT_IN_SOURCES))}")
    request = SourceRequest(DataSpec(source=name), data_root)
    folder: Path = _module(request.spec.prefix).fetch(request, log)
    log(f"{name} is in {folder} (verified)")
    return folder


def guess_source(path: Path) -> str | None:
    """Return the source that a path without a prefix may be meant for, such as `folder:pets`, or None."""
    for prefix, kind in SOURCES.items():
        if kind.takes_path and _module(prefix).recognizes(path):
            return f"{prefix}:{path}"
    return None


def _module(prefix: str) -> Any:
    return import_module(f"{__name__}.{prefix.replace('-', '_')}")
