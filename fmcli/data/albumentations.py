"""Import albumentations without its update check and its threads."""

import os
from typing import Any


def import_albumentations() -> Any:
    """Return the albumentations module, with its check for newer versions switched off."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # its threads and ours would fight over the same cores
    return albumentations
