"""The result of `fmcli data info`."""

from collections.abc import Mapping, Sequence

from fmcli.recipe.tracing import show_shape
from fmcli.report.document import Document, Sheet


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
    splits = list(counts)
    records = [
        {"label": label, "class": name, **{split: int(counts[split][label]) for split in splits}}
        for label, name in enumerate(class_names)
    ]
    totals = {split: int(sum(counts[split])) for split in splits}
    sheet = Sheet(
        title=f"{source}: {show_shape(input_shape)} (channels×height×width), {len(class_names)} classes, in {path}",
        columns=[">Label", "Class", *(f">{split}" for split in splits)],
        rows=[
            *([str(row["label"]), str(row["class"]), *(f"{row[split]:,}" for split in splits)] for row in records),
            ["", "all", *(f"{totals[split]:,}" for split in splits)],
        ],
        summary=1,
        notes=[f"SHA-256 of {split}: {digest}" for split, digest in digests.items()],
    )
    payload = {
        "source": source,
        "place": path,
        "input_shape": list(input_shape),
        "classes": records,
        "images": totals,
        "digests": dict(digests),
    }
    return Document([sheet], payload, records)
