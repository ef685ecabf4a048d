"""The ops in plain torch, one tile at a time: the fast, memory-lean implementation for CPUs.

One file per op, with the same functions as the op's Triton launchers in kernels/.
"""
