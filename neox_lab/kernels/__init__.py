"""How fast, never what: products by the faster library, and weights laid out for decoding.

``linear`` is the one product every layer uses and the module that makes it; the pure network knows
nothing else of this room. ``decoding_layout`` gives these modules copies of their weights, in the
order in which reading one token at a time is fastest.
"""
