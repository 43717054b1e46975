"""The one network of all digits generators: a small MLP-mixer told the noise level, a second scalar and the class.

A mixer (Tolstikhin et al., arXiv 2105.01601) with the modulation of DiT (arXiv 2212.09748). A plain MLP is four times
faster but memorises the 1,198 training images; attention or convolutions cost more time for the same samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from results.errors import BenchError

IMAGE_SIZE = 8
PATCH = 2
TOKENS = (IMAGE_SIZE // PATCH) ** 2
NUM_CLASSES = 10
NULL_LABEL = NUM_CLASSES
TOKEN_HIDDEN = 3 * TOKENS
FREQUENCIES = 16


class DigitsMixer(nn.Module):
    """F(x, t, s, y): image, noise level, second scalar and label to an image-shaped prediction.

    `t` and `s` are scalars in [0, 1] per sample; t = 1 is pure noise and t = 0 is data in every family. `s` is what the
    family needs beside the time: the interval (MeanFlow), the step size's code (shortcut), else 0. Labels are
    0..9, and 10 (the last row of the table) is the null label.

    `guided` adds the code of the guidance scale as a third scalar, `hinted` a second image beside x, `cascade` layers
    for images of 4x4, a token a pixel, and for such an image beside x. What is added starts with zero weights: the
    weights of a network without it are those of one with it that has not learnt to use it.
    """

    def __init__(
        self,
        width: int = 64,
        blocks: int = 3,
        *,
        channels: int = 1,
        outputs: int = 1,
        guided: bool = False,
        hinted: bool = False,
        cascade: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(channels * PATCH**2, width)
        self.position = nn.Parameter(0.3 * torch.randn(TOKENS, 1, width))
        self.time = ScalarEmbedding(width)
        self.second = ScalarEmbedding(width)
        self.label = nn.Embedding(NUM_CLASSES + 1, width)
        self.blocks = nn.ModuleList(MixerBlock(width) for _ in range(blocks))
        # Every block's modulation and the output's come from one product: 6 vectors a block, 2 at the end.
        self.modulation = nn.Linear(width, (6 * blocks + 2) * width)
        self.output = nn.Linear(width, outputs * PATCH**2)
        self.guide = ScalarEmbedding(width) if guided else None
        self.hint = nn.Linear(PATCH**2, width) if hinted else None
        self.cascade = Cascade(width) if cascade else None
        last = self.cascade and (self.cascade.output, self.cascade.hint)
        for layer in (self.modulation, self.output, self.guide and self.guide.mlp[-1], self.hint, *(last or ())):
            for parameter in layer.parameters() if layer is not None else ():
                nn.init.zeros_(parameter)

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor, guide: Tensor | None = None, hint: Tensor | None = None
    ) -> Tensor:
        """Return float32 [B, outputs, 8, 8] for x [B, channels, 8, 8], t [B], s [B] and labels int64 [B].

        `guide` [B] in [0, 1] and `hint` [B, 1, 8, 8] are what a guided or hinted network can take besides. A cascade
        also takes x [B, 1, 4, 4], and returns that shape, and `hint` [B, 1, 4, 4].
        """
        dtype = self.output.weight.dtype
        low = self.cascade is not None and x.shape[-1] < IMAGE_SIZE
        if self.cascade is not None and low:
            tokens = self.cascade.embed(pixels(x.to(dtype))) + self.position
        else:
            tokens = self.embed(patches(x.to(dtype))) + self.position
        if self.cascade is not None and hint is not None:
            tokens = tokens + self.cascade.hint(pixels(hint.to(dtype)))
        if self.hint is not None and hint is not None:
            tokens = tokens + self.hint(patches(hint.to(dtype)))
        condition = self.time(t) + self.second(s) + self.label(labels)
        if self.guide is not None and guide is not None:
            condition = condition + self.guide(guide)
        vectors = self.modulation(F.silu(condition)).unflatten(-1, (-1, self.width)).unbind(1)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, *vectors[6 * index : 6 * index + 6])
        tokens = modulated_norm(tokens, *vectors[-2:])
        if self.cascade is not None and low:
            return self.cascade.output(tokens).permute(1, 2, 0).reshape(x.shape).float()
        return images(self.output(tokens)).float()

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a network with fewer inputs; the further ones keep their zeros. Nothing else may lack."""
        keys = self.load_state_dict(weights, strict=False)
        further = {name for name in self.state_dict() if name.startswith(("guide.", "hint.", "cascade."))}
        if keys.unexpected_keys or not further.issuperset(keys.missing_keys):
            raise BenchError(f"the weights to start from do not fit: {keys}")


class Cascade(nn.Module):
    """What a mixer of 8x8 images needs to make 4x4 ones as well, and to be given one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.output, self.hint = nn.Linear(1, width), nn.Linear(width, 1), nn.Linear(1, width)


class Members(nn.Module):
    """Several mixers of one shape in one file: a system of more than one network."""

    members: nn.ModuleDict

    def __init__(self, members: Sequence[str], **architecture: Any) -> None:
        super().__init__()
        self.members = nn.ModuleDict({name: DigitsMixer(**architecture) for name in members})


class Choice(Members):
    """Each call asks one of the members."""

    def forward(self, member: str, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Return the output of one of the mixers."""
        output: Tensor = self.members[member](*inputs, **named)
        return output


class Experts(Members):
    """The members share out the images between them: each image meets one, and costs one evaluation."""

    def forward(self, member: Tensor, *inputs: Tensor) -> Tensor:
        """Return float32 [B, 1, 8, 8]: row i from the mixer number `member`[i], int64 [B].

        The rows' weights are gathered on the device, so that nothing waits for the values of `member`.
        """
        mixers = list(self.members.values())
        weights, _ = torch.func.stack_module_state(mixers)
        own = {name: weight[member] for name, weight in weights.items()}
        rows = tuple(value[:, None] for value in inputs)
        output: Tensor = torch.func.vmap(lambda own, rows: torch.func.functional_call(mixers[0], own, rows))(own, rows)
        return output[:, 0]


def build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """Return the untrained network of a card's or recipe's `architecture`.

    `members` names several mixers of the rest, `experts` tells that each image meets one of them; `guide` is the
    architecture of a second network.
    """
    facts = {key: value for key, value in architecture.items() if key != "guide"}
    members, experts = facts.pop("members", None), facts.pop("experts", False)
    return DigitsMixer(**facts) if members is None else (Experts if experts else Choice)(members, **facts)


class MixerBlock(nn.Module):
    """Mixing over the tokens, then over the channels, each modulated before and gated after.

    Tokens come first, [N, B, D]: mixing over tokens and mixing over channels are then one matrix product each, without
    a transposed copy.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_in = nn.Linear(TOKENS, TOKEN_HIDDEN)
        self.token_out = nn.Linear(TOKEN_HIDDEN, TOKENS)
        self.channel_in = nn.Linear(width, 3 * width)
        self.channel_out = nn.Linear(3 * width, width)

    def forward(
        self,
        x: Tensor,
        shift_1: Tensor,
        scale_1: Tensor,
        gate_1: Tensor,
        shift_2: Tensor,
        scale_2: Tensor,
        gate_2: Tensor,
    ) -> Tensor:
        """Return the mixed tokens [N, B, D]; the six vectors are [B, D]."""
        # In place: fresh memory for the wide activations costs more than computing them.
        h = modulated_norm(x, shift_1, scale_1).flatten(1)
        h = F.silu(torch.addmm(self.token_in.bias[:, None], self.token_in.weight, h), inplace=True)
        h = torch.addmm(self.token_out.bias[:, None], self.token_out.weight, h).view_as(x)
        x = torch.addcmul(x, 1 + gate_1, h)
        h = self.channel_out(F.silu(self.channel_in(modulated_norm(x, shift_2, scale_2)), inplace=True))
        return torch.addcmul(x, 1 + gate_2, h)


class ScalarEmbedding(nn.Module):
    """A scalar in [0, 1] as waves of 0.5 to 16 radians, then a two-layer MLP.

    So slow that time derivatives and differences over 0.005 stay smooth, fast enough for a good flow.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: Tensor) -> Tensor:
        """Embed [B] -> [B, D]."""
        exponents = torch.arange(FREQUENCIES, device=value.device) / (FREQUENCIES - 1)
        angles = value.float()[:, None] * (0.5 * 32.0**exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return LN(x) (1 + scale) + shift over the last axis of x [N, B, D], LN without weights."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


def patches(x: Tensor) -> Tensor:
    """Return the 2x2 patches of x [B, C, 8, 8], row-major, as [16, B, 4 C]."""
    side = IMAGE_SIZE // PATCH
    channels = x.shape[1]
    grid = x.reshape(-1, channels, side, PATCH, side, PATCH)
    return grid.permute(2, 4, 0, 1, 3, 5).reshape(TOKENS, -1, channels * PATCH**2)


def pixels(x: Tensor) -> Tensor:
    """Return the pixels of x [B, 1, 4, 4], row-major, as [16, B, 1]."""
    return x.flatten(1).T[:, :, None]


def images(tokens: Tensor) -> Tensor:
    """Return [B, C, 8, 8]: the inverse of `patches`."""
    side = IMAGE_SIZE // PATCH
    channels = tokens.shape[-1] // PATCH**2
    grid = tokens.reshape(side, side, -1, channels, PATCH, PATCH)
    return grid.permute(2, 3, 0, 4, 1, 5).reshape(-1, channels, IMAGE_SIZE, IMAGE_SIZE)
