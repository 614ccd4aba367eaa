"""One part by way of another: ``path_patch`` and ``edge_sweep``, which ``nl.patching`` hands on.

``path_patching`` holds both questions, ``path_runs`` the runs behind them. Prompts, named
positions, progress and results are those of the room of patching.
"""
