"""Modules as users run them: the shape checks of the tests cannot be traced by a compiler."""

import importlib.util
import sys
from contextlib import contextmanager

import torch


@contextmanager
def without_shape_checks(*modules):
    """Give fresh copies of some modules, each importing from the copies of those before it."""
    copies = {}
    for module in modules:
        name = f"{module.__name__}_without_shape_checks".replace(".", "_")
        spec = importlib.util.spec_from_file_location(name, module.__file__)
        copy = copies[module.__name__] = importlib.util.module_from_spec(spec)
        sys.modules[name] = copy  # where the compiler looks for globals
        spec.loader.exec_module(copy)
        for attribute, value in vars(module).items():
            if (
                origin := getattr(value, "__module__", None)
            ) in copies and origin != module.__name__:
                setattr(copy, attribute, getattr(copies[origin], attribute))
    yield list(copies.values())
    torch._dynamo.reset()
    for copy in copies.values():
        del sys.modules[copy.__name__]
