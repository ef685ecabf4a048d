"""The ops in plain torch, a tile at a time: what runs on a CPU, small in memory and fast.

One file an op, with the functions that the op's Triton launchers in kernels/ have, too.
"""
