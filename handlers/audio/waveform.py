"""Sound as the handlers pass it around."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Waveform: TypeAlias = NDArray[np.float32]
"""Mono samples between -1 and 1, [samples]."""
