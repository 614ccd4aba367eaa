"""Named places inside the network, and what one can do there: read, replace, keep.

``points`` is the ground floor, which the network itself imports: what a hook point is and how
a tensor passes one. Everything else stands on the network: ``table`` lists every hook point
with its shape and meaning, ``names`` finds the ones a user means, ``hooking`` places functions
there, ``cache`` keeps what passed.
"""
