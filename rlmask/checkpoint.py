"""Checkpoints: directories that are whole or absent, checked byte by byte, and execute nothing.

    000042/
      manifest.json        format version, size and sha256 of each file, the tree of plain values
      network.safetensors  one file for each part of the state that holds tensors or arrays
      replay.chunks.000012.safetensors
                           one for each chunk; while its version stays, a second name of the file
                           in the checkpoint before
      ...

A checkpoint is written under a temporary name, flushed to the disk, and renamed: a reader sees all
of it or nothing. safetensors has no checksum of its own, so the manifest carries one.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from rlmask.types import Chunk

FORMAT_VERSION = 1
# keys that stand for such a leaf in the tree of the manifest
_TENSOR, _ARRAY, _CHUNK = "$tensor", "$array", "$chunk"


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, corrupt, or of another format."""


def save(directory: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write a state as a new checkpoint directory, atomically.

    Args:
        state: a tree of dicts (with string keys) and lists; leaves are tensors, numpy arrays,
            chunks, numbers, strings, booleans and None. Chunks are read one at a time.
        previous: an earlier checkpoint of the same history; its chunks of the same version are
            linked, not read and written again.

    Raises:
        CheckpointError: if the disk is full or cannot be written; what was there before stays.
        FileExistsError: if the directory exists.
        TypeError: if the state holds something else.
    """
    if directory.exists():
        raise FileExistsError(f"checkpoint {directory} exists")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    chunks: dict[str, Chunk] = {}
    for key in state:
        if not isinstance(key, str) or set("/.") & set(key) or key.startswith("$"):
            raise TypeError(f"the state has the key {key!r}; each is the name of a file")
    tree = {key: _pack(value, key, "", parts, chunks) for key, value in state.items()}
    temporary = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {}
        for part, tensors in parts.items():
            files[f"{part}.safetensors"] = _write(temporary / f"{part}.safetensors", tensors)
        earlier = _chunk_files(previous)
        for name, chunk in chunks.items():
            files[name] = _save_chunk(temporary / name, chunk, previous, earlier.get(name))
        body = {"format_version": FORMAT_VERSION, "files": files, "state": tree}
        text = json.dumps(body, indent=1, allow_nan=True)
        # the last line guards the manifest itself
        manifest = json.dumps({"sha256": _sha256(text.encode()), "manifest": text})
        write_synced(temporary / "manifest.json", manifest.encode())
        sync_directory(temporary)
        temporary.rename(directory)
        sync_directory(directory.parent)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError):  # a chunk raised it
            raise
        free = shutil.disk_usage(directory.parent).free if directory.parent.exists() else 0
        raise CheckpointError(
            f"cannot write checkpoint {directory}: {error.strerror} ({free / 1e6:.0f} MB free); "
            "earlier checkpoints are untouched"
        ) from error


def load(directory: Path) -> dict[str, Any]:
    """Read a checkpoint after checking every byte of it; chunks are read when they are asked for.

    Raises:
        CheckpointError: if it is missing, incomplete, corrupt, or of a newer format. `read` of a
            chunk raises it too.
    """
    with _explained(directory):
        manifest = _read_manifest(directory)
        parts, chunks = {}, {}
        for name, expected in manifest["files"].items():
            if Path(name).name != name:
                raise CheckpointError(
                    f"checkpoint {directory} names a file outside of itself: {name}"
                )
            if "version" in expected:
                chunks[name] = _load_chunk(directory / name, expected)
            else:
                parts[Path(name).stem] = _read(directory / name, expected)
        return _unpack(manifest["state"], parts, chunks)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk.

    Raises:
        OSError: names the file, if it cannot be written.
    """
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # a full disk does not say of itself where
        raise


def replace_synced(path: Path, data: bytes) -> None:
    """Write a file under another name, then give it its own: a reader sees all of it or the old.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(directory: Path) -> dict[str, Any]:
    envelope = json.loads((directory / "manifest.json").read_bytes())
    text = envelope["manifest"]
    if _sha256(text.encode()) != envelope["sha256"]:
        raise CheckpointError(f"checkpoint {directory} is corrupt: manifest.json does not match")
    manifest = json.loads(text)
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {directory} has format {version}, this rlmask reads {FORMAT_VERSION}; "
            "use the version of rlmask that wrote it (see versions.json of the run)"
        )
    return manifest


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn whatever a bad checkpoint raises into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
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
        raise CheckpointError(f"checkpoint {directory} is corrupt: {error}") from error


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write a file; return its entry in the manifest."""
    data = save_tensors(tensors)
    write_synced(path, data)
    return {"size": len(data), "sha256": _sha256(data)}


def _read(path: Path, expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read a file and compare it with its entry in the manifest."""
    data = path.read_bytes()
    _check(path, expected, [data])
    return load_tensors(data)


def _check(path: Path, expected: Mapping[str, Any], blocks: Iterable[bytes]) -> None:
    size, digest = 0, hashlib.sha256()
    for block in blocks:
        size += len(block)
        digest.update(block)
    if size != expected["size"] or digest.hexdigest() != expected["sha256"]:
        raise CheckpointError(f"checkpoint {path.parent} is corrupt: {path.name} does not match")


def _chunk_files(directory: Path | None) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries of chunks; none if the checkpoint cannot be read."""
    if directory is None:
        return {}
    try:
        with _explained(directory):
            files = _read_manifest(directory)["files"]
            return {name: entry for name, entry in files.items() if "version" in entry}
    except CheckpointError:
        return {}


def _save_chunk(
    path: Path, chunk: Chunk, previous: Path | None, earlier: dict[str, Any] | None
) -> dict[str, Any]:
    """Link a chunk's file to that of an earlier checkpoint, or write it; return its entry."""
    if previous and earlier and earlier["version"] == chunk.version:
        try:
            os.link(previous / path.name, path)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            path.unlink(missing_ok=True)  # a network disk may link and yet report an error
        else:
            return earlier
    arrays = chunk.read()
    # a slash, since safetensors has a name of its own that begins without one
    tensors = {f"/{key}": _as_tensor(array, path.stem) for key, array in arrays.items()}
    return {**_write(path, tensors), "version": chunk.version}


def _load_chunk(path: Path, expected: Mapping[str, Any]) -> Chunk:
    """Check the file of a chunk, a block at a time; return the chunk, which reads it later."""
    with path.open("rb") as file:
        _check(path, expected, iter(partial(file.read, 2**20), b""))
    return Chunk(version=expected["version"], read=partial(_read_chunk, path, expected))


def _read_chunk(path: Path, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    with _explained(path.parent):
        return {key[1:]: tensor.numpy() for key, tensor in _read(path, expected).items()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _pack(
    value: Any,
    part: str,
    path: str,
    parts: dict[str, dict[str, torch.Tensor]],
    chunks: dict[str, Chunk],
) -> Any:
    """Move the tensors and chunks out of a tree; return the tree with names in their place."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise TypeError(f"{part}{path} has the key {key!r}; keys are text without a $")
        return {
            key: _pack(item, part, f"{path}/{_escape(key)}", parts, chunks)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_pack(item, part, f"{path}/{i}", parts, chunks) for i, item in enumerate(value)]
    if isinstance(value, torch.Tensor | np.ndarray):
        name = path or "/"
        parts.setdefault(part, {})[name] = _as_tensor(value, f"{part}{path}")
        return {_ARRAY if isinstance(value, np.ndarray) else _TENSOR: [part, name]}
    if isinstance(value, Chunk):
        name = f"{part}{_as_file_name(path)}.safetensors"
        chunks[name] = value
        return {_CHUNK: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    raise TypeError(f"{part}{path} is a {type(value).__name__}, which a checkpoint cannot hold")


def _as_tensor(value: torch.Tensor | np.ndarray, path: str) -> torch.Tensor:
    """Return a copy of its own: safetensors refuses views that share memory."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"{path} is an array of {value.dtype}")
        return torch.from_numpy(value.copy()).contiguous()
    if value.is_complex():
        raise TypeError(f"{path} is a tensor of {value.dtype}")
    return value.detach().cpu().clone().contiguous()


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")  # as JSON pointers do (RFC 6901)


def _as_file_name(path: str) -> str:
    """Return `.chunks.000012` for `/chunks/000012`; the name of a part has no dot."""
    return quote(path).replace(".", "%2E").replace("/", ".")


def _unpack(
    tree: Any,
    parts: Mapping[str, Mapping[str, torch.Tensor]],
    chunks: Mapping[str, Chunk],
) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, parts, chunks) for item in tree]
    if not isinstance(tree, dict):
        return tree
    for key in (_TENSOR, _ARRAY):
        if key in tree:
            part, name = tree[key]
            tensor = parts[part][name]
            return tensor.numpy() if key == _ARRAY else tensor
    if _CHUNK in tree:
        return chunks[tree[_CHUNK]]
    return {key: _unpack(value, parts, chunks) for key, value in tree.items()}
