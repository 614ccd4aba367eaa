"""TransformerLens 4 by the names of version 3, for steps that are written for those.

Version 4 has no ``HookedTransformer``; ``TransformerBridge`` with its compatibility mode gives the
same numbers. This is the spelling that its own guide to migrating gives.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


class HookedTransformer:
    """Loading as in version 3."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        """A bridge in compatibility mode, processed as the arguments say."""
        processing = {key: options.pop(key) for key in PROCESSING if key in options}
        bridge = HookedTransformer._boot(name, options)
        bridge.enable_compatibility_mode(disable_warnings=True, **processing)
        return bridge

    @staticmethod
    def from_pretrained_no_processing(name: str, **options: Any) -> Any:
        """A bridge whose weights are the checkpoint's."""
        bridge = HookedTransformer._boot(name, options)
        bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
        return bridge

    @staticmethod
    def _boot(name: str, options: dict[str, Any]) -> Any:
        from transformer_lens.model_bridge import TransformerBridge

        organisation = "" if "/" in name else "EleutherAI/"
        return TransformerBridge.boot_transformers(organisation + name, **options)


def namespace() -> Any:
    """``transformer_lens`` 4 with version 3's names."""
    import transformer_lens
    from transformer_lens.tools.model_registry import checkpoints

    names = {name: getattr(transformer_lens, name) for name in transformer_lens.__all__}
    return SimpleNamespace(
        **names,
        HookedTransformer=HookedTransformer,
        utils=transformer_lens.utilities,
        patching=transformer_lens.patching,
        head_detector=transformer_lens.head_detector,
        hook_points=SimpleNamespace(
            HookPoint=transformer_lens.hook_points.HookPoint,
            HookedRootModule=transformer_lens.HookedRootModule,
        ),
        evals=transformer_lens.evals,
        loading_from_pretrained=checkpoints,
    )
