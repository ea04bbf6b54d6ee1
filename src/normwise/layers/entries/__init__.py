"""The entries of NORMS, by family."""
