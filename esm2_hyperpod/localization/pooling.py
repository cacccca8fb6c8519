"""How the head sees the residues. This is the one file that knows how pooling is built.

`EsmForSequenceClassification` classifies what it finds at `<cls>`. Pooling other than `cls` is one more ESM
layer on top of the base, in which `<cls>` looks at all tokens. So a tuned model with any pooling is a plain
`EsmForSequenceClassification`, which `AutoModelForSequenceClassification` loads without our code.

An ESM layer computes `x + output(attention(LayerNorm(x)))` and adds a feed-forward part. Its weights are set
so that it gives a mean:

- The LayerNorm is a copy of the base's final one: it makes of `x` the representations that the base gives.
- Queries are zero. Then all attention scores are equal, and attention is the mean over the tokens.
- Values are the identity, so what is averaged are the representations themselves.
- The output is the identity times `MEAN_WEIGHT`. The mean outweighs `x`, which the residual connection adds;
  the final LayerNorm, which follows, removes the factor.
- The feed-forward part's last weights are zero, so it adds nothing.

`mean` stays like this. `attention` starts like this, and its queries, keys and values are trained.
"""

from dataclasses import dataclass

import torch
from transformers import EsmForSequenceClassification

from esm2_hyperpod.localization.settings import NO_POOLING

MEAN_WEIGHT = 1e4


@dataclass(frozen=True)
class Pooling:
    """One of `POOLINGS`, or `NO_POOLING`, on a base of so many layers."""

    kind: str
    base_layers: int

    @classmethod
    def of(cls, model: torch.nn.Module, kind: str) -> "Pooling":
        """The pooling of a model that was built with it."""
        return cls(kind, model.config.num_hidden_layers - cls(kind, 0).layers)

    @property
    def layers(self) -> int:
        """ESM layers on top of the base's."""
        return 0 if self.kind in ("cls", NO_POOLING) else 1

    @property
    def is_trained(self) -> bool:
        """Whether queries, keys and values are trained."""
        return self.kind == "attention"

    @property
    def modules(self) -> list[str]:
        """Names of its layers below `esm.`; none for `cls` and `none`."""
        return [f"encoder.layer.{self.base_layers}"] * self.layers

    def holds(self, parameter: str) -> bool:
        """Whether a parameter of this name is part of the pooling."""
        return any(f"{module}." in parameter for module in self.modules)

    def trains(self, parameter: str) -> bool:
        """Whether a parameter of the pooling is trained."""
        return self.is_trained and ".attention.self." in parameter

    def start(self, model: EsmForSequenceClassification) -> None:
        """Set the weights of a fresh layer so that it gives the mean."""
        if not self.layers:
            return
        layer, final_norm = model.esm.encoder.layer[-1], model.esm.encoder.emb_layer_norm_after
        attention = layer.attention
        zero = (attention.self.query, attention.self.value, attention.output.dense, layer.output.dense)
        with torch.no_grad():
            attention.LayerNorm.load_state_dict(final_norm.state_dict())
            for linear in zero:
                linear.weight.zero_()
                linear.bias.zero_()
            attention.self.value.weight.fill_diagonal_(1.0)
            attention.output.dense.weight.fill_diagonal_(MEAN_WEIGHT)
