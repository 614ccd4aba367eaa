"""Activations of texts in a folder: collected once, read many times.

    nl.activations.plan(model, texts, "resid_post")                # how large it will be
    stored = nl.activations.collect(model, texts, "resid_post", "folder")
    stored = nl.activations.open("folder")                         # later, without the model
    stored["resid_post", 2][:10]                                   # rows from the disk
    train, held_out = stored.split(held_out=0.1)                   # no document in both
    for batch in train.batches(("resid_post", 2), 4096): ...       # shuffled, every row once

A row is one token of one document at every site. The folder is a JSON manifest,
``activations.json``, and safetensors files, which any program reads: in each a tensor
``[row, ...]`` for every site, and for every row its ``document``, its position ``pos`` therein, its
``token``, and ``read``, a checksum of all the model had read when it computed the row.
"""

from neox_lab.activations.collecting import collect
from neox_lab.activations.planning import Plan, plan
from neox_lab.activations.stored import Stored, StoredSite, open

__all__ = ["Plan", "Stored", "StoredSite", "collect", "open", "plan"]
