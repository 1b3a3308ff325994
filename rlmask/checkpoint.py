"""Checkpoints: directories that are whole or absent, checked byte by byte, and execute nothing.

    000042/
      manifest.json       format version, size and sha256 of each file, the tree of plain values
      network.safetensors one file for each part of the state that holds tensors or arrays
      ...

A checkpoint is written under a temporary name, flushed to the disk, and renamed: a reader sees all
of it or nothing. safetensors has no checksum of its own, so the manifest carries one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

FORMAT_VERSION = 1
_TENSOR, _ARRAY = "$tensor", "$array"  # keys that stand for a tensor in the tree of the manifest


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, corrupt, or of another format."""


def save(directory: Path, state: Mapping[str, Any]) -> None:
    """Write a state as a new checkpoint directory, atomically.

    Args:
        state: a tree of dicts (with string keys) and lists; leaves are tensors, numpy arrays,
        numbers,
            strings, booleans and None.

    Raises:
        CheckpointError: if the disk is full or cannot be written; what was there before stays.
        FileExistsError: if the directory exists.
        TypeError: if the state holds something else.
    """
    if directory.exists():
        raise FileExistsError(f"checkpoint {directory} exists")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key in state:
        if not isinstance(key, str) or "/" in key or key.startswith((".", "$")):
            raise TypeError(f"the state has the key {key!r}; each is the name of a file")
    tree = {key: _pack(value, key, "", parts) for key, value in state.items()}
    temporary = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {}
        for part, tensors in parts.items():
            data = save_tensors(tensors)
            write_synced(temporary / f"{part}.safetensors", data)
            files[f"{part}.safetensors"] = {"size": len(data), "sha256": _sha256(data)}
        body = {"format_version": FORMAT_VERSION, "files": files, "state": tree}
        text = json.dumps(body, indent=1, allow_nan=True)
        # the last line guards the manifest itself
        manifest = json.dumps({"sha256": _sha256(text.encode()), "manifest": text})
        write_synced(temporary / "manifest.json", manifest.encode())
        sync_directory(temporary)
        temporary.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(directory.parent).free if directory.parent.exists() else 0
        raise CheckpointError(
            f"cannot write checkpoint {directory}: {error.strerror} ({free / 1e6:.0f} MB free); "
            "earlier checkpoints are untouched"
        ) from error


def load(directory: Path) -> dict[str, Any]:
    """Read a checkpoint after checking every byte of it.

    Raises:
        CheckpointError: if it is missing, incomplete, corrupt, or of a newer format.
    """
    try:
        envelope = json.loads((directory / "manifest.json").read_bytes())
        text = envelope["manifest"]
        if _sha256(text.encode()) != envelope["sha256"]:
            raise CheckpointError(
                f"checkpoint {directory} is corrupt: manifest.json does not match"
            )
        manifest = json.loads(text)
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {directory} has format {version}, this rlmask reads {FORMAT_VERSION}; "
                "use the version of rlmask that wrote it (see versions.json of the run)"
            )
        parts = {}
        for name, expected in manifest["files"].items():
            if Path(name).name != name:
                raise CheckpointError(
                    f"checkpoint {directory} names a file outside of itself: {name}"
                )
            data = (directory / name).read_bytes()
            if len(data) != expected["size"] or _sha256(data) != expected["sha256"]:
                raise CheckpointError(f"checkpoint {directory} is corrupt: {name} does not match")
            parts[Path(name).stem] = load_tensors(data)
        return _unpack(manifest["state"], parts)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {directory} is incomplete: {error.strerror} ({error.filename})"
        ) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        SafetensorError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {directory} is corrupt: {error}") from error


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _pack(value: Any, part: str, path: str, parts: dict[str, dict[str, torch.Tensor]]) -> Any:
    """Move the tensors of a tree into their part; return the tree with names in their place."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise TypeError(f"{part}{path} has the key {key!r}; keys are text without a $")
        return {key: _pack(v, part, f"{path}/{_escape(key)}", parts) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item, part, f"{path}/{i}", parts) for i, item in enumerate(value)]
    if isinstance(value, torch.Tensor | np.ndarray):
        name = path or "/"
        # a copy of its own: safetensors refuses views that share memory
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biuf":
                raise TypeError(f"{part}{path} is an array of {value.dtype}")
            stored, key = torch.from_numpy(value.copy()), _ARRAY
        else:
            if value.is_complex():
                raise TypeError(f"{part}{path} is a tensor of {value.dtype}")
            stored, key = value.detach().cpu().clone(), _TENSOR
        parts.setdefault(part, {})[name] = stored.contiguous()
        return {key: [part, name]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    raise TypeError(f"{part}{path} is a {type(value).__name__}, which a checkpoint cannot hold")


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")  # as JSON pointers do (RFC 6901)


def _unpack(tree: Any, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, parts) for item in tree]
    if not isinstance(tree, dict):
        return tree
    for key in (_TENSOR, _ARRAY):
        if key in tree:
            part, name = tree[key]
            tensor = parts[part][name]
            return tensor.numpy() if key == _ARRAY else tensor
    return {key: _unpack(value, parts) for key, value in tree.items()}
