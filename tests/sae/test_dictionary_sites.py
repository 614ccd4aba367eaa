"""Places by the names of all libraries are the hook points that the network itself calls so."""

from __future__ import annotations

import pytest

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import HookNameError
from neox_lab.hooks.names import exact
from neox_lab.hooks.table import hook_points
from neox_lab.sae import sites

POINTS = hook_points(GPTNeoXConfig(num_hidden_layers=3, use_parallel_residual=True), "causal-lm")


@pytest.mark.parametrize("place", sites.TABLE, ids=lambda place: place.modules)
def test_a_module_s_output_is_where_the_network_says(place: sites.Place) -> None:
    for module in place.modules.replace("{l}", "2").split():
        for prefix in ("", "gpt_neox.", "model."):
            found = sites.of_module(prefix + module)
            assert found is not None
            written = found[1]
            assert found == (written, written)
        if module != "embed_tokens":  # other models' name
            assert exact(f"gpt_neox.{module}", POINTS) == written
        both = sites.of_module(module, transcoder=True)
        assert (both is None) == (place.read == "")
        if both is not None:
            assert both[0] in POINTS and both[1] == written
            assert POINTS[both[0]].axes[:2] == ("batch", "pos")


def test_a_transcoder_reads_what_its_module_is_given() -> None:
    expected = {
        "layers.1": "blocks.1.hook_resid_pre",
        "layers.1.mlp": "blocks.1.mlp.hook_in",
        "layers.1.attention": "blocks.1.attn.hook_in",
    }
    for module, read in expected.items():
        both = sites.of_module(module, transcoder=True)
        assert both is not None and both[0] == read
        assert sites.module_of(*both) == module == sites.module_of(both[1], both[1])
        assert sites.input_of(both[1]) == read


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("embed", "hook_embed"),
        ("resid_out_layer5", "blocks.5.hook_resid_post"),
        ("resid_post_layer_8", "blocks.8.hook_resid_post"),
        ("attn_out_layer0", "blocks.0.hook_attn_out"),
        ("mlp_out_layer12", "blocks.12.hook_mlp_out"),
        ("layers.4", "blocks.4.hook_resid_post"),
        ("blocks.4.hook_resid_pre", "blocks.4.hook_resid_pre"),
        ("blocks.4.attn.hook_z_768", "blocks.4.attn.hook_z"),
        ("hook_embed", "hook_embed"),
        ("10_32768", None),
        ("seed1", None),
        ("layers", None),
        ("layers.x.mlp", None),
    ],
)
def test_names_of_folders(name: str, site: str | None) -> None:
    assert sites.of_name(name) == site


def test_names_that_users_type() -> None:
    assert sites.hook_name(("resid_post", 3)) == "blocks.3.hook_resid_post"
    assert sites.hook_name("gpt_neox.layers.3.mlp") == "blocks.3.hook_mlp_out"
    assert sites.layer_of("hook_embed") is None and sites.layer_of("blocks.12.hook_x") == 12
    assert sites.in_block("mlp.hook_in", 3) == "blocks.3.mlp.hook_in"
    with pytest.raises(HookNameError):
        sites.hook_name("resid_out_layer3")
