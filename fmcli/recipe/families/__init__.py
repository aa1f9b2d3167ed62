"""Network families: one file per kind of `[model]` table, listed in `FAMILIES`.

To add a family, write a subclass of `Family` in a new file and add it to `FAMILIES`. The union type of `[model]`, the
JSON Schema and `fmcli recipe keys` are derived from this dict.
"""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from fmcli.recipe.families.base import Family
from fmcli.recipe.families.kernel_cnn import KernelCnnSpec
from fmcli.recipe.families.kernel_resnet import KernelResnetSpec
from fmcli.recipe.families.sequential import SequentialSpec
from fmcli.recipe.families.torchvision import TorchvisionSpec

FAMILIES: dict[str, type[Family]] = {
    "kernel-cnn": KernelCnnSpec,
    "kernel-resnet": KernelResnetSpec,
    "sequential": SequentialSpec,
    "torchvision": TorchvisionSpec,
}
"""The class of each family, by the value of `family`."""

if TYPE_CHECKING:
    ModelSpec = Family
else:
    ModelSpec = Annotated[Union[tuple(FAMILIES.values())], Field(discriminator="family")]  # noqa: UP007
