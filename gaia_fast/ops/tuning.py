"""What was tuned by hand on the CPU, on AMD Zen 5, on the Python side; the C++ side's is in csrc/cpu/tuning.h.

How GPU kernels cut a map is in `tiling.py`; which runtime a program gets, in `gaia_fast.compiler.runtimes.choice`.
"""

# Reading one packed weight from memory costs as much as multiplying it with so many rows.
WEIGHT_READ_ROWS = 20
