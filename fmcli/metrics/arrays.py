"""Types of the arrays that metrics take."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
