"""TransformerLens's names and calls, answered by neox_lab's models.

An existing notebook on a Pythia model changes its import lines::

    from neox_lab.compat import transformer_lens
    from neox_lab.compat.transformer_lens import HookedTransformer, utils

and a model that is already loaded is taken through the door with a call::

    model = nl.compat.transformer_lens(nl.load("EleutherAI/pythia-70m"))

The module itself answers to that call, so the library keeps the one name it has there.
"""
