"""The paper's tables and figures, on the networks and images that are at hand, beside its own figures."""
