"""The result of `fmcli data info`."""

from collections.abc import Mapping, Sequence
from typing import Any

from fmcli.recipe.tracing import show_shape
from fmcli.report.document import Document
from fmcli.report.sheet import Sheet


def data_document(
    source: str, path: str, input_shape: tuple[int, ...], counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str], digests: Mapping[str, str],
) -> Document:  # fmt: skip
    """Return the number of images of each class in each split.

    Args:
        source: The source of the images as in the recipe.
        path: The file or folder that was read.
        input_shape: Shape of an image, (C, H, W).
        counts: Number of images of each class in label order, for each split.
        class_names: Class names in label order.
        digests: SHA-256 digest of each split.
    """
    records: list[dict[str, Any]] = [
        {"label": label, "class": name, **{split: int(counts[split][label]) for split in counts}}
        for label, name in enumerate(class_names)
    ]
    totals = {split: int(sum(counts[split])) for split in counts}
    sheet = Sheet(
        title=f"{source}: {show_shape(input_shape)} (channels×height×width), {len(class_names)} classes, in {path}",
        rows=[
            {">Label": record["label"], "Class": record["class"], **{f">{split}": record[split] for split in counts}}
            for record in [*records, {"label": None, "class": "all", **totals}]
        ],
        n_totals=1,
        notes=[f"SHA-256 of {split}: {digest}" for split, digest in digests.items()],
    )
    payload = {
        "source": source,
        "path": path,
        "input_shape": input_shape,
        "classes": records,
        "images": totals,
        "digests": digests,
    }
    return Document([sheet], payload, records)
