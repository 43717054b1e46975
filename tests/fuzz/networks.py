"""Networks pickled as NVIDIA's persistence classes pickle them, damaged or with code among their parts."""

import pickled_networks
import torch
from pickled_networks import Calls, Named
from stored import Case

CANARY = "canary"
"""A file that only code can have made which came with an input."""


class Bomb:
    """Unpickled it runs a command."""

    def __reduce__(self):
        return __import__("os").system, (f"touch {CANARY}",)


class Networks:
    """Makes the cases; what it is mixed into has `rng`, `write`, `damage` and `flipped`."""

    def network(self) -> Case:
        rng = self.rng
        evil = [
            Bomb, lambda: [Bomb()], lambda: {"x": Bomb()}, lambda: Calls(getattr, Bomb(), "x"),
            lambda: Calls(eval, f"open({CANARY!r}, 'w')"), lambda: Calls(Named("evil", "Class"), state={"x": Bomb()}),
            lambda: Calls(Named("evil", "loads"), b"x"),
            lambda: Calls(Named("torch.storage", "_load_from_bytes"), b"x"),
            lambda: None, lambda: 7, lambda: "text", lambda: Calls(Named("dnnlib.util", "EasyDict")),
        ]  # fmt: skip
        parts = {key: rng.choice(evil)() for key in ("hook", "_buffers", "scale") if rng.random() < 0.3}
        source = rng.choice(["", f"open({CANARY!r}, 'w')", "raise SystemExit"])
        made = pickled_networks.network({"a": torch.ones(2, 3), "b": torch.zeros(4)}, source=source, **parts)
        tree = rng.choice([{"ema": made}, {"net": made, "step": 3}, made, {"ema": made, "loss_fn": rng.choice(evil)()}])
        content = pickled_networks.dumps(tree)
        content = self.flipped(content) if rng.random() < 0.5 else content
        content = self.damage(content) if rng.random() < 0.2 else content
        path = str(self.write(rng.choice(["n.pkl", "n.pt", "n"]), content))
        words = [
            ["weights", "convert", path, "--dry-run"], ["weights", "convert", path, "-o", "out"],
            ["weights", "convert", path, "--tree", rng.choice(["ema", "net", "nowhere", "a/b"]), "-o", "out"],
            ["weights", "add", "edm-imagenet-64", path],
        ]  # fmt: skip
        return Case(rng.choice(words), "", [self.place / "out"])
