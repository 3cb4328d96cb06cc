"""Loops that PyTorch has no operator for, compiled by Numba for the processor at hand.

The first use of each compiles it, which takes seconds; the result is kept on disk. Numba notices that a kernel's own
file has changed, not that another one has which it calls: `make clean` after that.
"""
