"""EAP-IG as it is published, written out plainly: what ``circuits.py`` measures us beside.

Hanna et al., 2024, arXiv:2403.17806, on the weights of one of our models, without padding. Each
head has an input of its own for queries, keys and values, each MLP its own, and a backward hook at
every one of them multiplies the gradient with what all writers before it changed. Places are those
of the left rule, k/m of the way from corrupted to clean embeddings for k = 0 .. m - 1, one run
forward and back for each. Scores have the sign of ours: the effect of removing the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MetricOf = Callable[[Tensor], Tensor]


class PlainEdges:
    """The network with inputs split by head, and attribution patching of its edges."""

    def __init__(self, model: Any, metric: MetricOf) -> None:
        """Take the model's weights.

        Args:
            model: a GPTNeoXForCausalLM of ours.
            metric: from logits ``[batch, pos, vocab]`` to one number for each row.
        """
        self.network, self.unembed, self.metric = model.gpt_neox, model.embed_out, metric
        config = model.config
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.d_model, self.parallel = config.hidden_size, config.use_parallel_residual
        self.d_head = self.d_model // self.heads
        self.rotated = int(config.rotary_pct * self.d_head)
        self.writers, self.readers = 1 + self.layers * (self.heads + 1), 0
        self.readers = self.layers * (3 * self.heads + 1) + 1

    def eap_ig(self, clean: Tensor, corrupted: Tensor, steps: int) -> Tensor:
        """Scores ``[writer, reader]``, a mean over rows; 0 where there is no edge."""
        self.scores = torch.zeros(self.writers, self.readers, device=clean.device)
        shape = (*clean.shape, self.writers, self.d_model)
        self.changes = torch.zeros(shape, device=clean.device)
        ends = []
        with torch.no_grad():
            for ids, sign in ((corrupted, 1), (clean, -1)):
                ends.append(self.network.embed_in(ids))
                self.forward(ends[-1], lambda row, wrote, sign=sign: self._note(row, wrote, sign))
        for k in range(steps):
            start = ends[0] + k / steps * (ends[1] - ends[0])
            logits = self.forward(start.requires_grad_(), None)
            self.metric(logits).sum().backward()
        return self.scores / (steps * len(clean))

    def faithful(self, clean: Tensor, corrupted: Tensor, kept: Tensor) -> Tensor:
        """The metric of each row with ``kept`` edges alone, the others as corrupted prompts."""
        with torch.no_grad():
            shape = (*clean.shape, self.writers, self.d_model)
            self.changes = torch.zeros(shape, device=clean.device)
            self.forward(self.network.embed_in(corrupted), lambda r, w: self._note(r, w, 1))
            cut = (~kept).to(self.changes)
            start = self.network.embed_in(clean)
            logits = self.forward(start, lambda r, w: self._note(r, w, -1), cut)
            return self.metric(logits)

    def _note(self, row: int, wrote: Tensor, sign: int) -> None:
        """Add what one writer (or all heads of a layer) wrote to the changes."""
        if wrote.dim() == 3:
            self.changes[:, :, row] += sign * wrote
        else:
            self.changes[:, :, row : row + wrote.shape[2]] += sign * wrote

    def _read(
        self, stream: Tensor, column: int, before: int, width: int, cut: Tensor | None
    ) -> Tensor:
        """What ``width`` readers from ``column`` on read, each for itself."""
        own = stream
        if width > 1:
            own = stream.unsqueeze(2).repeat(1, 1, width, 1)
        columns = slice(column, column + width)
        if cut is not None:
            changes = self.changes[:, :, :before]
            added = torch.einsum("bpwd,wr->bprd", changes, cut[:before, columns])
            own = own + (added if width > 1 else added[:, :, 0])
        elif own.requires_grad:
            own = own.view_as(own)

            def multiply(gradient: Tensor) -> None:
                gradient = gradient if width > 1 else gradient.unsqueeze(2)
                changes = self.changes[:, :, :before]
                found = torch.einsum("bpwd,bprd->wr", changes, gradient)
                self.scores[:before, columns] += found

            own.register_hook(multiply)
        return own

    def forward(
        self,
        stream: Tensor,
        wrote: Callable[[int, Tensor], None] | None,
        cut: Tensor | None = None,
    ) -> Tensor:
        """Logits from embeddings ``[batch, pos, d_model]``."""
        if wrote is not None:
            wrote(0, stream)
        row, column = 1, 0
        for block in self.network.layers:
            weight = block.attention.query_key_value.weight.view(self.heads, 3, self.d_head, -1)
            bias = block.attention.query_key_value.bias.view(self.heads, 3, self.d_head)
            parts = []
            for part in range(3):
                own = self._read(stream, column + part * self.heads, row, self.heads, cut)
                x = block.input_layernorm(own)
                parts.append(torch.einsum("bphd,hed->bphe", x, weight[:, part]) + bias[:, part])
            z = self._attend(*parts)
            out = block.attention.dense.weight.view(self.d_model, self.heads, self.d_head)
            result = torch.einsum("bphe,dhe->bphd", z, out)
            if wrote is not None:
                wrote(row, result)
            attended = stream + result.sum(dim=2) + block.attention.dense.bias
            seen, before = (stream, row) if self.parallel else (attended, row + self.heads)
            read = self._read(seen, column + 3 * self.heads, before, 1, cut)
            mlp = block.mlp(block.post_attention_layernorm(read))
            row += self.heads
            if wrote is not None:
                wrote(row, mlp)
            stream = attended + mlp
            row, column = row + 1, column + 3 * self.heads + 1
        stream = self._read(stream, column, row, 1, cut)
        return self.unembed(self.network.final_layer_norm(stream))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """From ``[batch, pos, head, d_head]`` to the same."""
        length, half = q.shape[1], self.rotated // 2
        places = torch.arange(length, device=q.device)
        base = 10000.0 ** (-2 * torch.arange(half, device=q.device) / self.rotated)
        angles = (places[:, None] * base)[:, None]
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)

        def turned(x: Tensor) -> Tensor:
            first, second, rest = x.split([half, half, self.d_head - 2 * half], dim=-1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)

        q, k, v = (x.transpose(1, 2) for x in (turned(q), turned(k), v))
        scores = q @ k.transpose(2, 3) / math.sqrt(self.d_head)
        scores = scores.masked_fill(places[:, None] < places, -torch.inf)
        return (F.softmax(scores, dim=-1) @ v).transpose(1, 2)


class OnTransformerLens:
    """The same on a HookedTransformer, as published: TransformerLens below 4 has it."""

    def __init__(self, model: Any, metric: MetricOf) -> None:
        """Copy the model's weights; see ``PlainEdges``."""
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = model.config
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.metric = metric
        d_head = config.hidden_size // self.heads
        self.model = HookedTransformer(
            HookedTransformerConfig(
                n_layers=self.layers,
                d_model=config.hidden_size,
                n_ctx=config.max_position_embeddings,
                d_head=d_head,
                n_heads=self.heads,
                d_mlp=config.intermediate_size,
                d_vocab=config.vocab_size,
                act_fn="gelu",
                normalization_type="LN",
                positional_embedding_type="rotary",
                rotary_dim=int(config.rotary_pct * d_head),
                parallel_attn_mlp=config.use_parallel_residual,
                device=str(model.device),
                use_attn_result=True,
                use_split_qkv_input=True,
                use_hook_mlp_in=True,
            )
        )
        self.model.load_state_dict(self._weights(model), strict=False)

    def eap_ig(self, clean: Tensor, corrupted: Tensor, steps: int) -> Tensor:
        """See ``PlainEdges.eap_ig``."""
        heads, layers, d_model = self.heads, self.layers, self.model.cfg.d_model
        scores = clean.new_zeros(1 + layers * (heads + 1), layers * (3 * heads + 1) + 1).float()
        changes = torch.zeros(*clean.shape, len(scores), d_model, device=clean.device)
        embeds: list[Tensor] = []

        def note(rows: slice, sign: int) -> Callable[..., None]:
            def hook(wrote: Tensor, hook: Any) -> None:
                changes[:, :, rows] += sign * (wrote if wrote.dim() == 4 else wrote.unsqueeze(2))

            return hook

        def multiply(columns: slice, before: int) -> Callable[..., None]:
            def hook(gradient: Tensor, hook: Any) -> None:
                gradient = gradient if gradient.dim() == 4 else gradient.unsqueeze(2)
                found = torch.einsum("bpwd,bprd->wr", changes[:, :, :before], gradient)
                scores[:before, columns] += found

            return hook

        backward, row, column = [], 1, 0
        writing = [("hook_embed", slice(0, 1))]
        for layer in range(layers):
            prefix = f"blocks.{layer}."
            for part in "qkv":
                columns = slice(column, column + heads)
                backward.append((f"{prefix}hook_{part}_input", multiply(columns, row)))
                column += heads
            writing.append((f"{prefix}attn.hook_result", slice(row, row + heads)))
            before = row if self.model.cfg.parallel_attn_mlp else row + heads
            backward.append((f"{prefix}hook_mlp_in", multiply(slice(column, column + 1), before)))
            column, row = column + 1, row + heads
            writing.append((f"{prefix}hook_mlp_out", slice(row, row + 1)))
            row += 1
        last = f"blocks.{layers - 1}.hook_resid_post"
        backward.append((last, multiply(slice(column, column + 1), row)))
        with torch.inference_mode():
            for ids, sign in ((corrupted, 1), (clean, -1)):
                with self.model.hooks([(name, note(rows, sign)) for name, rows in writing]):
                    self.model(ids)
                embeds.append(self.model.embed(ids))
        corrupt, own = (each.clone() for each in embeds)
        for k in range(steps):
            start = (corrupt + k / steps * (own - corrupt)).requires_grad_()
            begin = [("hook_embed", lambda _, hook, start=start: start)]
            with self.model.hooks(begin, backward):
                self.metric(self.model(clean)).sum().backward()
        return scores / (steps * len(clean))

    @staticmethod
    def _weights(model: Any) -> dict[str, Tensor]:
        """Our weights under TransformerLens's names."""
        network = model.gpt_neox
        found = {
            "embed.W_E": network.embed_in.weight,
            "unembed.W_U": model.embed_out.weight.T,
            "unembed.b_U": torch.zeros(model.config.vocab_size),
            "ln_final.w": network.final_layer_norm.weight,
            "ln_final.b": network.final_layer_norm.bias,
        }
        for layer, block in enumerate(network.layers):
            own, prefix = model.blocks[layer], f"blocks.{layer}."
            for name, norm in (
                ("ln1", block.input_layernorm),
                ("ln2", block.post_attention_layernorm),
            ):
                found |= {f"{prefix}{name}.w": norm.weight, f"{prefix}{name}.b": norm.bias}
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
                found[f"{prefix}attn.{name}"] = getattr(own, name)
            for name in ("W_in", "b_in", "W_out", "b_out"):
                found[f"{prefix}mlp.{name}"] = getattr(own, name)
        return {name: tensor.detach().clone() for name, tensor in found.items()}
