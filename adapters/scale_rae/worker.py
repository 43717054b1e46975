"""Scale-RAE as a worker: the authors' language model, flow network and decoder, sampled here with the harness's noise.

Runs in an environment that has the authors' package (`bench worker setup scale-rae`). What the sampler does is written
out, not called, because the authors' has two defects: it begins at the second-highest time of its grid and ends with a
step back to noise, and its guided forward returns the conditional prediction everywhere. Both are run on request
(`behaviour` released), so that published numbers can be compared with.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

GRID = 1000
"""Times of the grid, u = 1/1000 .. 1 before the shift towards noise."""
BASE = 4096
"""Values of a latent whose times are not shifted."""
QUESTION = "Can you generate {}?"
"""What the authors and the published benchmark ask; the prompt is the protocol's, `a photo of a tench`."""
NEW_TOKENS = 512
MODEL, DECODER, ENCODER = "model", "decoder", "encoder"
"""Words of the card's architecture: hub names of the language model with its flow, of the decoder, and of the encoder,
whose configuration alone is read."""


def harness_half() -> Any:
    """Return the module bench_worker, which lies in the harness and is no part of this environment."""
    place = Path(__file__).resolve().parents[2] / "bench" / "contracts" / "bench_worker.py"
    spec = importlib.util.spec_from_file_location("bench_worker", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grid_times(steps: int, values: int) -> list[float]:
    """Return `steps` + 1 rising times of the shifted grid, the last 1, of latents of so many values.

    A time is the noise's share; the shift is sqrt(values / 4096).
    """
    shift = (values / BASE) ** 0.5
    indices = [round(i * (GRID - 1) / steps) for i in range(steps + 1)]
    return [shift * u / (1 + (shift - 1) * u) for u in ((index + 1) / GRID for index in indices)]


def intervals(times: list[float], behaviour: str) -> list[tuple[float, float]]:
    """Return the (from, to) of each step, one evaluation of the network at `from`.

    Corrected: from 1 down to the lowest time. Released: from the second-highest down, then from there back to 1.
    """
    down = [(times[i], times[i - 1]) for i in range(len(times) - 1, 0, -1)]
    return down if behaviour == "corrected" else [*down[1:], (times[-2], times[-1])]


def null_condition(network: Any, condition: Any) -> Any:
    """Return the learned condition of no prompt, [1, tokens, channels]: one vector for every token."""
    found = [value for name, value in network.named_parameters() if name.endswith("dropout_embedding")]
    if len(found) != 1 or found[0].numel() != condition.shape[-1]:
        raise ValueError("the network has no condition for an empty prompt, which guidance needs; use cfg 1")
    return found[0].detach().reshape(1, 1, -1).to(condition).expand(1, condition.shape[1], -1)


def flow_sample(network: Any, x: Any, condition: Any, null: Any, cfg: float, steps: int, behaviour: str) -> Any:
    """Return latents [B, C, h, w] of noise x by Euler steps of dx/dt = network(x, t, y=condition) = noise - data."""
    import torch

    for t, t_next in intervals(grid_times(steps, x[0].numel()), behaviour):
        if cfg > 1:
            both = network(torch.cat([x, x]), x.new_full((2 * len(x),), t), y=torch.cat([condition, null]))
            v, v_null = both.chunk(2)
            if behaviour == "corrected":
                v = v_null + cfg * (v - v_null)
        else:
            v = network(x, x.new_full((len(x),), t), y=condition)
        x = x + x.new_tensor(t_next - t) * v
    return x


class Model:
    """The released checkpoint of a card."""

    guidance = "classifier-free"
    counted = "forward hook on the flow's network (the language model's passes are not counted)"

    def __init__(self, job: Any) -> None:
        if job.random_seed is not None:
            raise ValueError("the authors' package builds no model without its checkpoint: no random weights")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded by a run
        import torch

        load = torch.load  # a pickle runs no code, whatever the authors' package asks for
        torch.load = lambda *given, **named: load(*given, **{**named, "weights_only": True})
        card, facts = job.card, job.card["architecture"]
        self.latent_shape, self.resolution = tuple(card["latent_shape"]), card["resolution"]
        self.num_classes = card["num_classes"]
        part = importlib.import_module
        try:
            found = part("scale_rae.model.builder").load_pretrained_model(
                model_path=facts[MODEL], model_base=None, model_name=Path(facts[MODEL]).name, device=job.device
            )
            decoder = part("scale_rae.model.multimodal_decoder").MultimodalDecoder(
                pretrained_encoder_path=facts[ENCODER],
                general_decoder_config=facts[DECODER],
                num_patches=self.latent_shape[1] * self.latent_shape[2],
                drop_cls_token=True,
                decoder_path=self.decoder_file(facts[DECODER]),
            )
        except ImportError as error:
            raise RuntimeError(
                f"{error}; this environment is not that of 'bench worker setup {card['name']}'"
            ) from error
        except OSError as error:
            names = ", ".join(facts[name] for name in (MODEL, DECODER, ENCODER))
            raise RuntimeError(f"{error}; get {names} with 'huggingface-cli download' in this environment") from error
        self.tokenizer, self.model = found[0], found[1].to(getattr(torch, job.dtype)).eval()
        self.head = self.model.diff_head
        self.network = self.head.model
        self.decoder = decoder.to(self.model.device).eval()
        for name in ("image_mean", "image_std"):
            if hasattr(decoder, name):
                setattr(decoder, name, getattr(decoder, name).to(self.model.device))
        self.parameters = sum(value.numel() for value in self.network.parameters())
        self.conditions: dict[str, Any] = {}

    @staticmethod
    def decoder_file(repository: str) -> str:
        """Return the decoder's weights, from a folder or the hub client's cache."""
        if Path(repository).is_dir():
            return str(Path(repository) / "model.pt")
        return str(importlib.import_module("huggingface_hub").hf_hub_download(repository, "model.pt"))

    def condition(self, prompt: str) -> Any:
        """Return what conditions the flow for a prompt, [1, tokens, channels]: decoded greedily, so once is enough."""
        if prompt not in self.conditions:
            self.conditions[prompt] = self.asked(prompt)
        return self.conditions[prompt]

    def asked(self, prompt: str) -> Any:
        """Ask the language model for an image and return the condition that it hands to its flow."""
        part = importlib.import_module
        conversation = part("scale_rae.conversation").conv_templates["qwen_2"].copy()
        conversation.append_message(conversation.roles[0], QUESTION.format(prompt))
        conversation.append_message(conversation.roles[1], None)
        token = part("scale_rae.constants").IMAGE_TOKEN_INDEX
        ids = part("scale_rae.mm_utils").tokenizer_image_token(
            conversation.get_prompt(), self.tokenizer, token, return_tensors="pt"
        )
        told: list[Any] = []

        def infer(z: Any, x_end: Any = None, guidance_level: float | None = None) -> Any:
            told.append(z.detach().clone())
            return z.new_zeros(len(z), self.latent_shape[1] * self.latent_shape[2], self.latent_shape[0])

        own, self.head.infer = self.head.infer, infer
        try:
            first, last, end = map(self.tokenizer.convert_tokens_to_ids, ("<im_start>", "<im_end>", "<|im_end|>"))
            self.model.generate(
                ids.unsqueeze(0).to(self.model.device), images=None, output_image=True, do_sample=True, temperature=0.0,
                use_customize_greedy=True, top_p=None, num_beams=1, max_new_tokens=NEW_TOKENS, use_cache=True,
                start_image_token_id=first, end_image_token_id=last, eos_token_id=end, guidance_level=1.0,
            )  # fmt: skip
        finally:
            self.head.infer = own
        if not told:
            raise ValueError(f"the language model answered without an image: '{prompt}'")
        return told[0].cpu()

    def sample(self, batch: Any) -> Any:
        """Return images, float32 [B, 3, resolution, resolution] in [-1, 1]."""
        import torch

        with torch.inference_mode():
            condition = torch.cat([self.condition(prompt) for prompt in batch.prompts]).to(self.model.device)
            x = torch.from_numpy(batch.normal(self.latent_shape)).to(condition)
            null = null_condition(self.network, condition).expand(len(x), -1, -1) if batch.cfg > 1 else None
            with batch.counting(self.network):
                x = flow_sample(self.network, x, condition, null, batch.cfg, batch.steps, batch.settings["behaviour"])
            tokens = x.flatten(2).transpose(1, 2)
            if getattr(self.head, "normalize_data", False):
                tokens = tokens * self.head.data_std.to(tokens) + self.head.data_mean.to(tokens)
            pixels = self.decoder(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1))
        return 2 * pixels.float().clip(0, 1) - 1


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    harness_half().serve(Model)
