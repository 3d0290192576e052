"""FastV: after the first decoder layers, drop the vision tokens that the question does not look at. Training-free.

    layers 0 .. K - 1     every token
    after layer K - 1     score of vision token j = attention it receives from the last prompt token, the mean over the heads;
                          of a sample's N vision tokens, the round(N * (1 - R)) with the highest scores stay, and all other tokens
    layers K ..           only the tokens that are left, at their original positions, under a causal mask of their own

The sequence and the caches of the layers from K on are really shorter, each sample by its own choice. Between equal scores
the lower position stays. What the model returns has its full length again, with zeros at the dropped positions.

The choice is made once, when the prompt is read; decoding keeps it. So generation without a cache, where the choice would
follow every new token, is refused, and so are chunked prefill and assisted decoding, where the last token of a chunk is not
the last of the prompt. Training works: gradients flow through the tokens that stay, and the token before the first answer
is the one that asks, as when generating.

Source: Chen et al., arXiv 2403.06764, with its K and R; pkunlp-icler/FastV, whose cached variant this is, written from the
equations. There, one sample is a batch, its image stands at fixed positions, and padding is not known.
"""

from dataclasses import dataclass

from torch import Tensor

from vision_remember.plugins import Origin
from vision_remember.refusion import Backbones, Insertion, Method, Shortening

ORIGIN = Origin(paper="arXiv 2403.06764", code="pkunlp-icler/FastV", licence="none stated")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are the paper's.

    Attributes:
        full_layers: K, how many layers see every vision token.
        drop_ratio: R, the share of a sample's vision tokens that is dropped after them, from 0 to 1.
    """

    full_layers: int = 2
    drop_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.drop_ratio <= 1:
            raise ValueError(f"fastv: drop_ratio is a share from 0 to 1, got {self.drop_ratio}")


class FastV(Method):
    """Acts twice: drops tokens after layer K - 1, and lays the rest out at full length after the last layer."""

    def __init__(self, config: Config, backbones: Backbones) -> None:
        super().__init__(config, backbones)
        last = backbones.decoder_layers - 1
        if not 1 <= config.full_layers <= last:
            raise ValueError(
                f"fastv: full_layers is {config.full_layers}, the decoder has {backbones.decoder_layers} layers; the scores need one "
                f"and the drop needs one above, so use 1 to {last}"
            )
        self.drops_after = config.full_layers - 1
        self.layers = (self.drops_after, last)

    def insertion(self, layer: int) -> Insertion:
        """The child of decoder layer ``layer``; it has no parameters."""
        return Drop(self.config) if layer == self.drops_after else Restore()


class Drop(Insertion):
    """Leaves the vision tokens that received the most attention, and everything else that is no padding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.drop_ratio = config.drop_ratio

    def forward(self, hidden: Tensor, state: Shortening, layer: int) -> tuple[Tensor, Shortening]:
        if state.vision is None:
            return hidden, state
        state.leave(self.kept(state))
        return state.gather(hidden), state

    def kept(self, state: Shortening) -> Tensor:
        """Which positions stay, ``bool[B, T]``."""
        assert state.valid is not None and state.vision is not None and state.received is not None
        num_kept = [round(count * (1 - self.drop_ratio)) for count in state.vision.sum(1).tolist()]
        scores = state.received.masked_fill(~state.vision, -1.0)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return state.valid & (~state.vision | (rank < rank.new_tensor(num_kept)[:, None]))


class Restore(Insertion):
    """Puts the tokens that are left back where they came from."""

    def forward(self, hidden: Tensor, state: Shortening, layer: int) -> tuple[Tensor, Shortening]:
        return (hidden if state.places is None else state.spread(hidden)), state


Refusion = FastV
