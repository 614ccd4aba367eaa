"""Texts and tables on their way to a model, and numbers on their way back.

``tables`` reads what the user has, ``batches`` encodes and pads it, ``activations`` keeps what a
model makes of many texts, ``statistics`` says how sure a mean is.
"""
