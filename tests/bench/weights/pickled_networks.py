"""Networks pickled as NVIDIA's persistence classes pickle them, without those classes."""

import io
import pickle
import sys
import types

import torch

MODULE = "torch_utils.persistence"


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the classes of a pickled network were rebuilt")


class Calls:
    """Pickles as the call `function(*arguments)`; `state` follows as BUILD."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call

    def __call__(self):
        raise AssertionError("only its pickle is called")


class Named:
    """Pickles as the global `module.name`, which need not exist."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("only its pickle is called")


class _Pickler(pickle._Pickler):
    """Writes globals that are not here."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
            return
        super().save(obj, save_persistent_id)


def persistence(class_name, state, source="", **meta):
    """Return what pickles as a persistent object."""
    facts = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Calls(_reconstruct_persistent_obj, facts | meta)


def module(parameters=(), buffers=(), modules=(), **state):
    """Return the state of a torch module."""
    whole = {"training": False, "_parameters": dict(parameters), "_buffers": dict(buffers), "_modules": dict(modules)}
    return whole | {"_non_persistent_buffers_set": set(), "_forward_pre_hooks": {}} | state


def network(weights, class_name="EDMPrecond", kwargs=None, source="", **state):
    """Return a wrapper around a network with `weights`, by the names of a state dict below `model`."""
    parameters = {name: torch.nn.Parameter(value) for name, value in weights.items()}
    inner = persistence("Net", module(parameters), source)
    outer = module(modules={"model": inner}, **state) | {"_init_kwargs": dict(kwargs or {})}
    return persistence(class_name, outer, source)


def dumps(value, protocol=4):
    """Return a plain pickle."""
    with installed():
        return _dumped(value, protocol)


def _dumped(value, protocol):
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=protocol).dump(value)
    return buffer.getvalue()


def save(value, path, zipped=True):
    """Write `value` as torch does, in a zip or as it did before."""
    with installed():
        writer = types.SimpleNamespace(
            __name__="pickle", Pickler=_Pickler, dump=lambda obj, file, protocol: file.write(_dumped(obj, 2))
        )
        torch.save(value, path, pickle_module=writer, _use_new_zipfile_serialization=zipped)


class installed:
    """Make `torch_utils.persistence` importable for a while, as pickle wants it when it writes."""

    def __enter__(self):
        found = types.ModuleType(MODULE)
        _reconstruct_persistent_obj.__module__ = MODULE
        _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
        found._reconstruct_persistent_obj = _reconstruct_persistent_obj
        self.limit = sys.getrecursionlimit()
        sys.setrecursionlimit(20_000)
        sys.modules["torch_utils"], sys.modules[MODULE] = types.ModuleType("torch_utils"), found

    def __exit__(self, *error):
        sys.setrecursionlimit(self.limit)
        for name in ("torch_utils", MODULE):
            sys.modules.pop(name, None)
