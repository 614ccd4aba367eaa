"""The pure network, in reading order: rotary, attention, block, network.

``masking`` says who may look at whom, ``keys_values`` remembers the past, ``activations`` are the
MLP's functions, ``outputs`` what a forward pass returns. Nothing here loads, generates or saves.
"""
