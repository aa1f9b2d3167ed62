"""Images: load them (`sources`), split them (`splits`), and copy batches to the device (`loader`)."""

from fmcli.data.image_files import ImageReader, LoadedImage
from fmcli.data.image_set import ImageSet, Splits
from fmcli.data.loader import DeviceLoader, evaluation_batches, evaluation_loader, explain_worker_error, is_worker_error
from fmcli.data.normalization import Normalization, resolve_normalization
from fmcli.data.sources import fetch_source, guess_source, load_source
from fmcli.data.splits import draw_sample, load_splits, split_images

__all__ = [
    "DeviceLoader",
    "ImageReader",
    "ImageSet",
    "LoadedImage",
    "Normalization",
    "Splits",
    "draw_sample",
    "evaluation_batches",
    "evaluation_loader",
    "explain_worker_error",
    "fetch_source",
    "guess_source",
    "is_worker_error",
    "load_source",
    "load_splits",
    "resolve_normalization",
    "split_images",
]
