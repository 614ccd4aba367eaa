"""Questions one asks of a model; each is a function whose answer is an object.

``lens`` reads predictions off the residual stream, layer by layer.
"""
