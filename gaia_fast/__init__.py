"""gaia_fast: out-of-distribution scores from attribution gradients (GAIA), at the lowest latency possible."""
