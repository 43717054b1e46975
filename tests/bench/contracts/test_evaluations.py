"""What counts as an evaluation, whatever shape a library gives to its outputs."""

from dataclasses import dataclass

import pytest
import torch
from diffusers.utils import BaseOutput
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from bench.contracts.evaluations import Evaluations, batch_rows
from results.errors import BenchError

ROWS = torch.zeros(5, 3)


@dataclass
class Sample(BaseOutput):
    sample: torch.Tensor


@dataclass
class Plain:
    name: str
    values: torch.Tensor


@pytest.mark.parametrize(
    "output",
    [
        ROWS, (ROWS, torch.zeros(2)), [None, ROWS], {"loss": None, "sample": ROWS}, Sample(sample=ROWS),
        BaseModelOutput(last_hidden_state=ROWS), Plain("x", ROWS), ({"deep": [ROWS]},),
    ],
    ids=lambda output: type(output).__name__,
)  # fmt: skip
def test_rows_are_those_of_the_first_tensor(output):
    assert batch_rows(output) == 5


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_a_list_of_one_tensor_a_sample_counts_its_samples(rows):
    samples = [torch.zeros(4, 1, 8, 8) for _ in range(rows)]
    assert batch_rows((samples,)) == batch_rows(Sample(sample=samples)) == batch_rows((None, samples)) == rows


def test_a_network_of_diffusers_is_counted_as_it_is():
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1,
    )  # fmt: skip
    with torch.inference_mode(), Evaluations(network) as evaluations:
        network(torch.zeros(3, 1, 8, 8), 1)
        network(torch.zeros(3, 1, 8, 8), 1, return_dict=False)
    assert evaluations.rows == 6


@pytest.mark.parametrize("output", [None, "text", {}, torch.tensor(1.0)])
def test_an_output_without_rows_says_so(output):
    with pytest.raises(BenchError, match="the network returned"), Evaluations(Returns(output)) as evaluations:
        evaluations.network(ROWS)


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output
