"""How fast, never what: products by the faster library, and weights laid out for decoding.

``linear`` is the one product every layer uses, ``decoding_layout`` keeps weights in the order in
which reading one token at a time is fastest.
"""
