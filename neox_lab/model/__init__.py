"""The pure network, in reading order: rotary, attention, block, network.

``hook_points`` is how tensors on the way can be seen and replaced, ``masking`` says who may look at
whom, ``key_value_cache`` remembers the past, ``activations`` are the MLP's functions, ``outputs``
what a forward pass returns, ``output_heads`` what can stand on top. Nothing here loads, generates
or saves.
"""
