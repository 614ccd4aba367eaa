"""One part by way of another: ``path_patch`` and ``edge_sweep``."""
