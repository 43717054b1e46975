"""How fast the generators sample: images/s, share of the machine's matrix peak, and where the time goes.

python benchmarks/generators.py [--models sit-xl,...] [--steps 1,2,4,40] [--compile] [--json FILE]

Weights are random: speed does not depend on them. On CUDA the published sizes run in bfloat16. On a processor each
transformer is cut to `--depth` blocks and one image is sampled in float32 by one thread; seconds are then those of the
processor, which other work on the machine lengthens less than the wall clock's. Sampling is compared with the same
evaluations of the same network called bare in the same process. Every time is the smallest of `--repeats`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bench.contracts.adapter import Adapter, fill_randomly
from bench.contracts.card import ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.models.cards import find_card
from bench.models.loading import DTYPES, ready
from bench.models.meter import Meter
from bench.models.meter import clock as wall_clock
from bench.models.registry import family_class, skeleton
from bench.run.costs import Call, Operations, count_operations, first_calls
from bench.run.provenance import device_name

MODELS = "ucgm-xl,sit-xl,imf-xl,rae-xl-256"
DECODE_REPEATS = 3


@dataclass(frozen=True)
class Row:
    """One model at one step count; seconds are for the whole batch."""

    model: str
    checkpoint: str
    steps: int
    cfg: float
    batch: int
    nfe: float
    images_per_second: float
    generate_seconds: float
    """From noise to latents, decoding not included."""
    network_seconds: float
    guide_seconds: float
    decode_seconds: float
    bare_seconds: float
    """The same evaluations of network and guide, one after the other with nothing between."""
    overhead: float
    """generate_seconds / bare_seconds."""
    network_share_of_peak: float
    decode_share_of_peak: float
    diffusers_decode_seconds: float | None
    """The decoder of diffusers with the same widths on the same latents; None where it has none."""
    peak_memory: int | None
    first_seconds: float
    """The first batch of this setting, with what is compiled for it."""


def clock(device: torch.device) -> float:
    """Return seconds: of the wall once an accelerator has finished, of the processor otherwise."""
    return wall_clock(device) if device.type == "cuda" else time.process_time()


def smallest(repeats: int, run: Callable[[], float]) -> float:
    """Return the smallest result of `repeats` runs, after one that is thrown away."""
    run()
    return min(run() for _ in range(repeats))


def matrix_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the most FLOP/s that a square matrix product reaches here."""
    best = 0.0
    for size in (4096, 8192, 16384) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

        def product(a: Tensor = a, b: Tensor = b) -> float:
            began = clock(device)
            for _ in range(4):
                a @ b
            return (clock(device) - began) / 4

        best = max(best, 2 * size**3 / smallest(repeats, product))
    return best


def shallow(card: ModelCard, depth: int) -> ModelCard:
    """Return the card with at most `depth` blocks in each transformer trunk."""

    def cut(architecture: dict[str, Any]) -> dict[str, Any]:
        found = dict(architecture)
        if isinstance(found["depth"], list):
            found["depth"] = [min(found["depth"][0], depth), found["depth"][1]]
        else:
            found["depth"] = min(found["depth"], depth)
        if "aux_head_depth" in found:
            found["aux_head_depth"] = min(found["aux_head_depth"], found["depth"] - 1)
        if "guide" in found:
            found["guide"] = cut(found["guide"])
        return found

    return replace(card, architecture=cut(dict(card.architecture)))


def operations(card: ModelCard, steps: int, cfg: float) -> Operations:
    """Count the operations of one sample's parts on the meta device."""
    adapter = skeleton(card).to("meta")
    with first_calls(adapter) as calls:
        adapter.sample(torch.zeros(1, dtype=torch.int64), steps, cfg, noise=PhiloxNoise(0, [0], "meta"))
    return count_operations(adapter, calls)


class Stopwatch:
    """Seconds spent in a module's calls."""

    def __init__(self, module: nn.Module | None, device: torch.device) -> None:
        self.module, self.device = module, device
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Any:
        """Time every call inside the block."""
        handles: list[RemovableHandle] = []
        if self.module is not None:
            handles.append(self.module.register_forward_pre_hook(self._start))
            handles.append(self.module.register_forward_hook(self._stop))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, *_: Any) -> None:
        self.began = clock(self.device)

    def _stop(self, *_: Any) -> None:
        self.seconds += clock(self.device) - self.began


class Bench:
    """One loaded model at one setting."""

    def __init__(self, adapter: Adapter, steps: int, cfg: float, batch: int) -> None:
        self.adapter, self.steps, self.cfg = adapter, steps, cfg
        self.device = adapter.device
        self.labels = torch.arange(batch) % adapter.num_classes
        self.noise = PhiloxNoise(0, range(batch), self.device)

    @torch.inference_mode()
    def generate(self) -> float:
        """Return the seconds from noise to latents of one batch."""
        settings = self.adapter.resolve_settings(self.steps)
        began = clock(self.device)
        self.adapter.generate(self.labels.to(self.device), self.steps, self.cfg, self.noise, settings)
        return clock(self.device) - began

    def parts(self) -> tuple[float, float]:
        """Return the seconds in network and guide of one batch, with clocks around each call."""
        network, guide = Stopwatch(self.adapter.network, self.device), Stopwatch(self.adapter.guide, self.device)
        with network.running(), guide.running():
            self.generate()
        return network.seconds, guide.seconds

    def calls(self) -> tuple[float, dict[str, Call], dict[str, int]]:
        """Return NFE, the inputs of each part's first call, and how often network and guide are called."""
        meter = Meter(self.adapter)
        with meter.installed():
            self.generate()
        with first_calls(self.adapter) as calls:
            self.adapter.sample(self.labels, self.steps, self.cfg, noise=self.noise)
        rows = {"network": meter.rows, "guide": meter.guide_rows}
        counts = {part: rows[part] // len(calls[part].inputs[0]) for part in rows if part in calls}
        return meter.rows / len(self.labels), calls, counts

    @torch.inference_mode()
    def bare(self, calls: dict[str, Call], counts: dict[str, int]) -> float:
        """Return the seconds of the same calls on fixed inputs, without a sampler."""
        networks = {"network": self.adapter.network, "guide": self.adapter.guide}
        began = clock(self.device)
        for part, count in counts.items():
            network = networks[part]
            assert network is not None
            for _ in range(count):
                network(*calls[part].inputs, **calls[part].named)
        return clock(self.device) - began


def diffusers_decoder(card: ModelCard, adapter: Adapter) -> Callable[[Tensor], Any] | None:
    """Return diffusers' own `decode` of the card's kind of KL autoencoder, with random weights; None for others."""
    from diffusers import AutoencoderKL

    kind = (card.autoencoder or {}).get("kind", "")
    widths: tuple[int, ...]
    if "va-vae" in kind:
        widths, first, channels = (128, 128, 256, 256, 512), "AttnUpDecoderBlock2D", 32
    elif "sd-vae" in kind:
        widths, first, channels = (128, 256, 512, 512), "UpDecoderBlock2D", 4
    else:
        return None
    count = len(widths)
    with adapter.device:
        whole: Any = AutoencoderKL(
            latent_channels=channels, block_out_channels=widths, layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=(first, *("UpDecoderBlock2D",) * (count - 1)),
        )  # fmt: skip
    whole = whole.to(adapter.device, adapter.dtype).eval().requires_grad_(False)
    return lambda latents: whole.decode(latents.to(adapter.dtype)).sample


class Decoding(NamedTuple):
    """Seconds of decoding one batch, by the adapter and by diffusers (None where it has no such decoder)."""

    ours: float
    theirs: float | None


@torch.inference_mode()
def decoding(decode: Callable[[Tensor], Any], theirs: Callable[[Tensor], Any] | None, latents: Tensor) -> Decoding:
    """Decode `latents` by both, taking turns; the smallest seconds of each."""

    def once(function: Callable[[Tensor], Any]) -> float:
        began = clock(latents.device)
        function(latents)
        return clock(latents.device) - began

    both = [decode] if theirs is None else [decode, theirs]
    for function in both:
        once(function)
    seconds = [[once(function) for function in both] for _ in range(DECODE_REPEATS)]
    ours, *others = (min(times) for times in zip(*seconds, strict=True))
    return Decoding(ours, others[0] if others else None)


def random_adapter(card: ModelCard, device: torch.device) -> Adapter:
    """Return the adapter on `device` with random weights that are drawn there: that is sooner."""
    with device:
        adapter = family_class(card.family)(card)
    adapter.to(device)
    generator = torch.Generator(device).manual_seed(0)
    for network in adapter.modules():
        fill_randomly(network, generator)
    return adapter


adapters: dict[str, Adapter] = {}
decoders: dict[str, Decoding] = {}


def measure(name: str, steps: int, batch: int, arguments: argparse.Namespace) -> Row:
    """Measure one model at one step count, at its natural guidance."""
    asked = find_card(name)
    card = find_card(asked.member(steps)) if asked.members else asked
    cfg = card.guidance.natural
    if arguments.depth:
        card = shallow(card, arguments.depth)
    if card.name not in adapters:
        adapters.clear()
        adapter = random_adapter(card, torch.device(arguments.device)).to(arguments.device, DTYPES[arguments.dtype])
        adapters[card.name] = ready(adapter, compile=arguments.compile)
    adapter = adapters[card.name]
    bench, device = Bench(adapter, steps, cfg, batch), adapter.device
    began = clock(device)
    adapter.sample(bench.labels, steps, cfg, noise=bench.noise)
    first = clock(device) - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    nfe, calls, counts = bench.calls()
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    # Sampler and bare calls take turns, so that what else the machine does meets both.
    pairs = [(bench.generate(), bench.bare(calls, counts)) for _ in range(arguments.repeats + 1)][1:]
    generate, bare = (min(times) for times in zip(*pairs, strict=True))
    network, guide = min(bench.parts() for _ in range(arguments.repeats))
    latents = calls["decoder"].inputs[0]
    if card.name not in decoders:
        decoders[card.name] = decoding(adapter.decode, diffusers_decoder(card, adapter), latents)
    decoded, flops = decoders[card.name], operations(card, steps, cfg)
    return Row(
        model=name, checkpoint=card.name, steps=steps, cfg=cfg, batch=batch, nfe=nfe,
        images_per_second=batch / (generate + decoded.ours), generate_seconds=generate, network_seconds=network,
        guide_seconds=guide, decode_seconds=decoded.ours, bare_seconds=bare, overhead=generate / bare,
        network_share_of_peak=flops.network * nfe * batch / network / arguments.peak,
        decode_share_of_peak=flops.decoder * batch / decoded.ours / arguments.peak,
        diffusers_decode_seconds=decoded.theirs, peak_memory=memory, first_seconds=first,
    )  # fmt: skip


def main() -> None:
    """Measure, print a Markdown table and, with --json, write every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--steps", default="1,2,4,40")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default=None, choices=DTYPES)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--depth", type=int, default=None, help="blocks of each trunk, 0 for all [all on CUDA, else 2]")
    parser.add_argument("--repeats", type=int, default=None, help="[5 on CUDA, else 2]")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--budget", type=float, default=None, help="seconds after which no further row is begun")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    began = time.monotonic()
    on_gpu = arguments.device.startswith("cuda")
    arguments.dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    batch = arguments.batch_size or (64 if on_gpu else 1)
    arguments.repeats = arguments.repeats or (5 if on_gpu else 2)
    if arguments.depth is None:
        arguments.depth = 0 if on_gpu else 2
    if not on_gpu:
        torch.set_num_threads(1)
    arguments.peak = matrix_peak(torch.device(arguments.device), DTYPES[arguments.dtype])
    print(
        f"{device_name(arguments.device)}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{arguments.dtype}, matrix peak {arguments.peak / 1e12:.3g} TFLOP/s, batch {batch}, "
        f"trunk depth {arguments.depth or 'as published'}{', compiled' if arguments.compile else ''}\n"
    )
    columns = "steps cfg NFE img/s network guide decode rest vs_bare peak:_network,_decode first_s"
    print(f"| model | {' | '.join(columns.split()).replace('_', ' ')} |")
    print("| - |" + " -: |" * 11)
    rows = []
    for name in arguments.models.split(","):
        for steps in map(int, arguments.steps.split(",")):
            if arguments.budget is not None and time.monotonic() - began > arguments.budget:
                print(f"{name} at {steps} steps: left out, the time is spent", flush=True)
                continue
            row = measure(name, steps, batch, arguments)
            rows.append(row)
            rest = max(0.0, row.generate_seconds - row.network_seconds - row.guide_seconds)
            parts = (row.network_seconds, row.guide_seconds, row.decode_seconds, rest)
            shares = " | ".join(f"{part / sum(parts):.1%}" for part in parts)
            print(
                f"| {row.model} | {steps} | {row.cfg:g} | {row.nfe:g} | {row.images_per_second:.3g} | {shares} | "
                f"{row.overhead:.3f} | {row.network_share_of_peak:.0%}, {row.decode_share_of_peak:.0%} | "
                f"{row.first_seconds:.1f} |",
                flush=True,
            )
    print()
    for checkpoint, seconds in decoders.items():
        theirs = f", diffusers' own {seconds.theirs:.3g} s" if seconds.theirs else ""
        print(f"decode of {checkpoint}: {seconds.ours:.3g} s{theirs}")
    if arguments.json is not None:
        facts = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        arguments.json.write_text(json.dumps({"arguments": facts, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
