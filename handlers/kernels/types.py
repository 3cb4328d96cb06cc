"""Arrays that kernels take. All are C-contiguous."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Int8s = NDArray[np.int8]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Panels = NDArray[np.int8] | NDArray[np.float32]
