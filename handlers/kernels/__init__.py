"""What PyTorch has no operator for, or takes longer to begin than to compute: compiled by Numba for this processor.

The first use of each compiles it, which takes seconds; the result is kept on disk. Numba notices that a kernel's own
file has changed, not that another one has which it calls: `make clean` after that.
"""
