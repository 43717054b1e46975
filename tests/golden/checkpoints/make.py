"""Writes the recorded checkpoints beside it with the libraries that publishers use.

Last run with jax 0.10.2, flax 0.12.8, optax 0.2.8, orbax-checkpoint 0.12.8 (needs no part of this project).
"""

import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from flax.training import checkpoints, train_state

here = Path(__file__).parent
layer = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3) / 7, "bias": np.array([1.5, -2.0, 0.25], np.float32)}
params = jax.tree.map(jnp.asarray, {"net": {"Dense_0": layer}})
ema_params = jax.tree.map(lambda array: 2 * array, params)
optimiser = optax.adam(1e-3)

# As the shortcut repository's checkpoint class: one pickle of jax arrays beside the optimiser's state.
state = {
    "params": params["net"],
    "params_ema": ema_params["net"],
    "opt_state": optimiser.init(params),
    "step": jnp.asarray(7),
}
with (here / "shortcut.pickle").open("wb") as file:
    pickle.dump({"train_state": state, "_timestamp": 1.0}, file)

half = {"net": {"Dense_0": ema_params["net"]["Dense_0"] | {"half": jnp.asarray([0.5, 3.0], jnp.bfloat16)}}}
(here / "flax.msgpack").write_bytes(serialization.to_bytes({"params": params, "ema_params": half, "step": 7}))
serialization.MAX_CHUNK_SIZE = 8
(here / "flax-chunked.msgpack").write_bytes(
    serialization.msgpack_serialize({"ema_params": jax.tree.map(np.asarray, ema_params)})
)


class TrainState(train_state.TrainState):
    ema_params: dict


whole = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1), ema_params=ema_params)
shutil.rmtree(here / "orbax", ignore_errors=True)
checkpoints.save_checkpoint_multiprocess(str(here / "orbax"), whole, step=12)
shutil.make_archive(str(here / "orbax"), "zip", here / "orbax")
shutil.rmtree(here / "orbax")
