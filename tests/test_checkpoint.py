import errno
import hashlib
import itertools
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

from rlmask import checkpoint
from rlmask.checkpoint import CheckpointError, load, save
from rlmask.types import Chunk

BASE = torch.arange(24).reshape(4, 6)

TENSORS = {
    "float32": torch.tensor([1.5, -0.0, math.inf, -math.inf, 1e-45]),
    "nan": torch.tensor([math.nan, 0.0]),
    "float64": torch.tensor([[1 / 3, 2.0]], dtype=torch.float64),
    "float16": torch.tensor([65504.0], dtype=torch.float16),
    "bfloat16": torch.tensor([3e38, 1 / 3], dtype=torch.bfloat16),
    "int64": torch.tensor([2**63 - 1, -(2**63)]),
    "int32": torch.tensor([-7], dtype=torch.int32),
    "int16": torch.tensor([[300]], dtype=torch.int16),
    "int8": torch.tensor([-128, 127], dtype=torch.int8),
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([[True, False], [False, True]]),
    "0-d": torch.tensor(2.5),
    "0-d bool": torch.tensor(True),
    "empty": torch.empty(0),
    "empty in one axis": torch.empty(3, 0, 2, dtype=torch.int64),
    "transposed": BASE.T,
    "every other": BASE[::2, 1::3],
    "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    "weight of a network": torch.nn.Parameter(torch.ones(2)),
}

ARRAYS = {
    "float64": np.array([math.pi, math.nan, -math.inf]),
    "float32": np.zeros((2, 3), np.float32),
    "int64": np.array([[1], [-(2**63)]]),
    "uint8": np.array([0, 255], np.uint8),
    "uint32": np.array([2**32 - 1], np.uint32),
    "uint64": np.array([2**64 - 1], np.uint64),
    "bool": np.array([True, False]),
    "0-d": np.array(7),
    "empty": np.zeros((0, 4), np.float32),
    "transposed": np.arange(6).reshape(2, 3).T,
    "reversed": np.arange(5)[::-1],
    "broadcast": np.broadcast_to(np.arange(3), (2, 3)),
    "read-only": np.frombuffer(b"\1\0\1", np.uint8),
}

PLAIN = {
    "none": None,
    "true": True,
    "false": False,
    "big": 2**127 + 1,  # as in the state of numpy's PCG64
    "negative": -(10**40),
    "tenth": 0.1,
    "tiny": 5e-324,
    "nan": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "minus zero": -0.0,
    "text": 'Ω " \\ \n \x00 \u2028 $tensor',
    "empty text": "",
    "empty list": [],
    "empty dict": {},
    "nested": [1, [2, [3, {"a": [None]}]], {}],
    "numpy": [np.float32(0.5), np.int64(3), np.bool_(True)],
}


def bits(tree):
    """Return a tree as something that is equal only if every bit is."""
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [bits(value) for value in tree]
    if isinstance(tree, torch.Tensor):
        flat = tree.detach().contiguous().flatten()
        return "tensor", str(tree.dtype), tuple(tree.shape), flat.view(torch.uint8).tolist()
    if isinstance(tree, np.ndarray):
        return "array", str(tree.dtype), tree.shape, tree.tobytes()
    if isinstance(tree, Chunk):
        return "chunk", tree.version, bits(dict(tree.read()))
    if isinstance(tree, np.generic):
        tree = tree.item()
    return type(tree), repr(tree)


def small_state():
    generator = torch.Generator().manual_seed(0)
    return {
        "update": 7,
        "seconds": 1.25,
        "network": {"weight": torch.rand(5, 4, generator=generator), "bias": torch.zeros(4)},
        "generator": generator.get_state()[:64],
        "envs": [{"actions": np.arange(n), "episode": n} for n in range(3)],
        "episodes": [{"episode_return": -0.1 * n} for n in range(3)],
    }


@pytest.fixture
def saved(tmp_path):
    save(tmp_path / "000007", small_state())
    return tmp_path / "000007"


def write_manifest(directory, **changes):
    """Change the manifest of a checkpoint, as its own writer would."""
    body = json.loads(json.loads((directory / "manifest.json").read_text())["manifest"])
    body.update(changes)
    text = json.dumps(body)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps({"sha256": digest, "manifest": text}))


def entry(data):
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back(tmp_path, name):
    save(tmp_path / "1", {"part": {"x": [TENSORS[name]]}, "alone": TENSORS[name]})
    assert bits(load(tmp_path / "1")) == bits(
        {"part": {"x": [TENSORS[name]]}, "alone": TENSORS[name]}
    )


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back(tmp_path, name):
    save(tmp_path / "1", {"part": {"x": [ARRAYS[name]]}, "alone": ARRAYS[name]})
    assert bits(load(tmp_path / "1")) == bits(
        {"part": {"x": [ARRAYS[name]]}, "alone": ARRAYS[name]}
    )


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_value_comes_back(tmp_path, name):
    save(tmp_path / "1", {"part": {"x": [PLAIN[name]]}, "alone": PLAIN[name]})
    assert bits(load(tmp_path / "1")) == bits({"part": {"x": [PLAIN[name]]}, "alone": PLAIN[name]})


def test_everything_at_once_comes_back(tmp_path):
    state = {"tensors": TENSORS, "arrays": ARRAYS, **PLAIN}
    save(tmp_path / "1", state)
    assert bits(load(tmp_path / "1")) == bits(state)


def test_views_of_the_same_memory_come_back_apart(tmp_path):
    memory = torch.arange(6.0)
    save(tmp_path / "1", {"net": {"all": memory, "some": memory[2:4], "again": memory}})
    net = load(tmp_path / "1")["net"]
    assert bits(net) == bits({"all": memory, "some": memory[2:4], "again": memory})
    net["all"].zero_()
    assert net["some"].tolist() == [2, 3]
    assert net["again"].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_comes_back_can_be_written_to(tmp_path):
    save(tmp_path / "1", {"tensor": torch.zeros(2), "array": np.zeros(2)})
    state = load(tmp_path / "1")
    state["tensor"] += 1
    state["array"] += 1
    assert state["tensor"].tolist() == [1, 1]
    assert state["array"].tolist() == [1, 1]


def test_the_state_of_an_adam_optimizer_comes_back(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    save(tmp_path / "1", {"optimizer": dict(optimizer.state[weight])})
    assert bits(load(tmp_path / "1")["optimizer"]) == bits(dict(optimizer.state[weight]))


def test_keys_with_a_slash_do_not_collide(tmp_path):
    state = {"part": {"a": {"b": torch.tensor(1)}, "a/b": torch.tensor(2), "": torch.tensor(3)}}
    save(tmp_path / "1", state)
    assert bits(load(tmp_path / "1")) == bits(state)


@pytest.mark.parametrize("key", ["$tensor", "$array", "$chunk"])
def test_a_key_that_stands_for_a_tensor_is_refused_or_comes_back(tmp_path, key):
    state = {"part": {key: ["part", "/x"], "x": torch.tensor(1)}}
    try:
        save(tmp_path / "1", state)
    except TypeError:
        return
    assert bits(load(tmp_path / "1")) == bits(state)


@pytest.mark.parametrize("state", [{"part": {1: 2}}, {"part": [{None: 2}]}, {1: 2}])
def test_keys_that_are_not_text_are_refused(tmp_path, state):
    with pytest.raises(TypeError):
        save(tmp_path / "1", state)


@pytest.mark.parametrize(
    "leaf",
    [
        object(),
        {1, 2},
        b"bytes",
        1j,
        Path("/"),
        torch.float32,
        np.array(["a"]),
        np.array([None]),
        np.array([1j]),
    ],
    ids=lambda leaf: f"{type(leaf).__name__} {getattr(leaf, 'dtype', '')}",
)
def test_an_unsupported_leaf_is_refused(tmp_path, leaf):
    with pytest.raises(TypeError):
        save(tmp_path / "000001", {"part": {"x": [leaf]}})
    assert os.listdir(tmp_path) == []


def test_the_error_for_an_unsupported_leaf_says_where_it_is(tmp_path):
    with pytest.raises(TypeError, match=r"envs/1/x is a set"):
        save(tmp_path / "1", {"envs": [0, {"x": {1}}]})


def test_an_existing_directory_is_refused(saved):
    before = bits(load(saved))
    with pytest.raises(FileExistsError):
        save(saved, {"update": 8})
    assert bits(load(saved)) == before


# chunks


def chunk(version, read=None, **arrays):
    return Chunk(version=version, read=read or (lambda: arrays))


def unread():
    pytest.fail("a chunk was read")


def replay(*chunks):
    """A state with chunks 0, 1, ... of a replay buffer."""
    chunks = {f"{number:06d}": chunk for number, chunk in enumerate(chunks)}
    return {"update": 7, "replay": {"head": np.arange(3), "chunks": chunks}}


def chunk_file(directory, number=0):
    return directory / f"replay.chunks.{number:06d}.safetensors"


def inode(path):
    return path.stat().st_ino


A, B = chunk(1, x=np.arange(4, dtype=np.uint8)), chunk(5, x=np.ones((2, 3)))


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_in_a_chunk_comes_back(tmp_path, name):
    state = {"part": [{"x": chunk(3, some=ARRAYS[name])}], "alone": chunk(0, y=ARRAYS[name])}
    save(tmp_path / "1", state)
    assert bits(load(tmp_path / "1")) == bits(state)


def test_chunks_come_back_and_each_has_its_file(tmp_path):
    memory = np.arange(6)
    views = chunk(2**70, all=memory, some=memory[2:4], again=memory)
    state = replay(views, chunk(0), chunk(3, **{"__metadata__": memory, "": memory, "a/b": memory}))
    save(tmp_path / "1", state)
    assert bits(load(tmp_path / "1")) == bits(state)
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == [
        "manifest.json",
        "replay.chunks.000000.safetensors",
        "replay.chunks.000001.safetensors",
        "replay.chunks.000002.safetensors",
        "replay.safetensors",
    ]


def test_what_comes_back_in_a_chunk_can_be_written_to(tmp_path):
    save(tmp_path / "1", replay(A))
    loaded = load(tmp_path / "1")["replay"]["chunks"]["000000"]
    loaded.read()["x"][:] = 9
    assert loaded.read()["x"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("key", ["..", "../../x", "a/b", "a\0b", "a b", "a%2Fb", "~1", "Ω", ""])
def test_the_file_of_a_chunk_is_inside_of_the_checkpoint_whatever_its_key(tmp_path, key):
    state = {"part": {key: A, "a": {"b": B, "": B}, "a.b": A, "tensor": torch.ones(1)}}
    save(tmp_path / "1", state)
    assert bits(load(tmp_path / "1")) == bits(state)
    assert len(list((tmp_path / "1").iterdir())) == 6
    assert os.listdir(tmp_path) == ["1"]


def test_a_part_whose_name_could_be_that_of_a_chunk_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"a\.b"):
        save(tmp_path / "1", {"a": {"b": A}, "a.b": torch.ones(1)})


def test_a_chunk_of_the_same_version_is_linked_and_not_read(tmp_path):
    save(tmp_path / "1", replay(A, B))
    later = replay(chunk(1, read=unread), chunk(6, x=np.zeros(2)), A)
    save(tmp_path / "2", later, tmp_path / "1")
    assert inode(chunk_file(tmp_path / "2", 0)) == inode(chunk_file(tmp_path / "1", 0))
    assert inode(chunk_file(tmp_path / "2", 1)) != inode(chunk_file(tmp_path / "1", 1))
    expected = bits(replay(A, later["replay"]["chunks"]["000001"], A))
    assert bits(load(tmp_path / "2")) == expected
    assert bits(load(tmp_path / "1")) == bits(replay(A, B))
    shutil.rmtree(tmp_path / "1")
    assert bits(load(tmp_path / "2")) == expected


def test_only_chunks_are_linked(tmp_path):
    save(tmp_path / "1", replay(A))
    save(tmp_path / "2", replay(A), tmp_path / "1")
    name = "replay.safetensors"
    assert inode(tmp_path / "2" / name) != inode(tmp_path / "1" / name)


def test_without_an_earlier_checkpoint_nothing_is_linked(tmp_path):
    save(tmp_path / "1", replay(A))
    save(tmp_path / "2", replay(chunk(1, x=np.zeros(1))))
    assert bits(load(tmp_path / "2")) == bits(replay(chunk(1, x=np.zeros(1))))


def test_a_loaded_state_can_be_saved(tmp_path):
    save(tmp_path / "1", replay(A, B))
    save(tmp_path / "2", load(tmp_path / "1"))
    save(tmp_path / "3", load(tmp_path / "2"), tmp_path / "2")
    shutil.rmtree(tmp_path / "1")
    assert bits(load(tmp_path / "2")) == bits(load(tmp_path / "3")) == bits(replay(A, B))
    assert inode(chunk_file(tmp_path / "3")) == inode(chunk_file(tmp_path / "2"))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_a_disk_without_links_gets_a_copy(tmp_path, monkeypatch, code):
    def fail(source, target):
        raise OSError(code, os.strerror(code))

    save(tmp_path / "1", replay(A, B))
    monkeypatch.setattr(os, "link", fail)
    save(tmp_path / "2", replay(A, B), tmp_path / "1")
    assert inode(chunk_file(tmp_path / "2")) != inode(chunk_file(tmp_path / "1"))
    assert bits(load(tmp_path / "2")) == bits(replay(A, B))


def test_a_link_that_exists_in_spite_of_an_error_is_not_written_through(tmp_path, monkeypatch):
    link = os.link

    def answer_lost(source, target):  # as on a network disk
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    save(tmp_path / "1", replay(A))
    monkeypatch.setattr(os, "link", answer_lost)
    save(tmp_path / "2", replay(chunk(1, x=np.zeros(9))), tmp_path / "1")
    assert bits(load(tmp_path / "1")) == bits(replay(A))


@pytest.mark.parametrize("what", ["nothing", "chunk", "manifest", "bad manifest", "bad files"])
def test_an_earlier_checkpoint_that_cannot_be_read_is_not_needed(tmp_path, what):
    save(tmp_path / "1", replay(A))
    if what == "nothing":
        shutil.rmtree(tmp_path / "1")
    elif what == "chunk":
        chunk_file(tmp_path / "1").unlink()
    elif what == "manifest":
        (tmp_path / "1" / "manifest.json").unlink()
    elif what == "bad manifest":
        (tmp_path / "1" / "manifest.json").write_text("{}")
    else:
        write_manifest(tmp_path / "1", files={"x": 3})
    save(tmp_path / "2", replay(A), tmp_path / "1")
    assert bits(load(tmp_path / "2")) == bits(replay(A))


def test_chunks_are_read_and_written_one_after_the_other(tmp_path, monkeypatch):
    seen = []
    write = checkpoint.write_synced

    def read(number):
        seen.append(f"read {number}")
        return {"x": np.full(2, number)}

    def noted(path, data):
        seen.append(f"write {path.name}")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_synced", noted)
    chunks = [chunk(1, read=lambda number=number: read(number)) for number in range(3)]
    save(tmp_path / "1", replay(*chunks))
    assert seen[1:-1] == [
        text
        for number in range(3)
        for text in (f"read {number}", f"write {chunk_file(tmp_path, number).name}")
    ]


def test_loading_does_not_hold_chunks_in_memory(tmp_path):
    size = 2**26
    save(tmp_path / "1", replay(*[chunk(1, x=np.zeros(size // 4, np.uint8))] * 4))
    tracemalloc.start()
    try:
        load(tmp_path / "1")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**23  # of 16 MB a chunk


def test_a_chunk_that_cannot_be_read_or_stored_leaves_nothing(tmp_path):
    def fail():
        raise CheckpointError("it is gone")

    with pytest.raises(CheckpointError, match="it is gone"):
        save(tmp_path / "1", replay(A, chunk(1, read=fail)))
    with pytest.raises(TypeError, match=r"replay\.chunks\.000001 is an array of complex128"):
        save(tmp_path / "1", replay(A, chunk(1, x=np.array([1j]))))
    assert os.listdir(tmp_path) == []


def test_a_corrupt_chunk_is_detected(tmp_path):
    save(tmp_path / "000007", replay(A, B))
    rng = random.Random(0)
    path = chunk_file(tmp_path / "000007", 1)
    good = path.read_bytes()
    for _ in range(50):
        bad = bytearray(good)
        bad[rng.randrange(len(good))] ^= rng.randrange(1, 256)
        for data in (bad, good[: rng.randrange(len(good))], good + b"\0"):
            path.write_bytes(data)
            with pytest.raises(CheckpointError, match=rf"000007 is corrupt: {path.name}"):
                load(tmp_path / "000007")
    path.unlink()
    with pytest.raises(CheckpointError, match="000007 is incomplete") as caught:
        load(tmp_path / "000007")
    assert path.name in str(caught.value)


def test_a_chunk_that_is_gone_or_corrupt_when_it_is_read_is_an_error(tmp_path):
    save(tmp_path / "000007", replay(A))
    loaded = load(tmp_path / "000007")["replay"]["chunks"]["000000"]
    path = chunk_file(tmp_path / "000007")
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\7")
    with pytest.raises(CheckpointError, match=rf"000007 is corrupt: {path.name}"):
        loaded.read()
    path.write_bytes(good)
    assert loaded.read()["x"].tolist() == [0, 1, 2, 3]
    shutil.rmtree(tmp_path / "000007")
    with pytest.raises(CheckpointError, match="000007 is incomplete") as caught:
        loaded.read()
    assert path.name in str(caught.value)


# corruption


def test_every_changed_byte_is_detected(saved):
    rng = random.Random(0)
    files = sorted(saved.iterdir())
    assert len(files) >= 3
    for number in range(300):
        path = files[number % len(files)]
        good = path.read_bytes()
        at = rng.randrange(len(good))
        bad = bytearray(good)
        bad[at] ^= rng.randrange(1, 256)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"000007 is (corrupt|incomplete)"):
            load(saved)
        path.write_bytes(good)
    assert bits(load(saved)) == bits(small_state())


def test_every_changed_bit_of_the_manifest_is_detected(saved):
    path = saved / "manifest.json"
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load(saved)


def test_every_truncation_is_detected(saved):
    rng = random.Random(0)
    files = sorted(saved.iterdir())
    for number in range(50):
        path = files[number % len(files)]
        good = path.read_bytes()
        length = 0 if number < len(files) else rng.randrange(len(good))
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match=r"000007 is (corrupt|incomplete)"):
            load(saved)
        path.write_bytes(good)
    assert bits(load(saved)) == bits(small_state())


def test_a_longer_file_is_detected(saved):
    for path in sorted(saved.glob("*.safetensors")):
        good = path.read_bytes()
        path.write_bytes(good + b"\0")
        with pytest.raises(CheckpointError, match=path.name):
            load(saved)
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["network.safetensors", "envs.safetensors", "manifest.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match="is incomplete") as caught:
        load(saved)
    assert name in str(caught.value)


def test_files_that_changed_places_are_detected(saved):
    (saved / "network.safetensors").rename(saved / "x")
    (saved / "envs.safetensors").rename(saved / "network.safetensors")
    (saved / "x").rename(saved / "envs.safetensors")
    with pytest.raises(CheckpointError, match="is corrupt"):
        load(saved)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="000003"):
        load(tmp_path / "000003")


def test_a_file_in_place_of_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "000003").write_text("hello")
    with pytest.raises(CheckpointError, match="000003"):
        load(tmp_path / "000003")


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", "null", '{"manifest": 3, "sha256": ""}'])
def test_a_manifest_that_is_none_is_refused(saved, text):
    (saved / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="is corrupt"):
        load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"network.safetensors": 3}},
        {"files": {}},
        {"state": {"x": {"$tensor": 3}}},
        {"state": {"x": {"$tensor": ["network", "/nothing"]}}},
        {"state": {"x": {"$tensor": ["nothing", "/weight"]}}},
        {"state": {"x": {"$array": ["network"]}}},
        {"state": {"x": {"$chunk": "network.safetensors"}}},
        {"state": {"x": {"$chunk": ["network"]}}},
    ],
)
def test_a_manifest_that_contradicts_is_refused(saved, changes):
    write_manifest(saved, **changes)
    with pytest.raises(CheckpointError, match="is corrupt"):
        load(saved)


def test_another_format_names_both_versions(saved):
    write_manifest(saved, format_version=checkpoint.FORMAT_VERSION + 41)
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    assert f"has format {checkpoint.FORMAT_VERSION + 41}" in str(caught.value)
    assert f"reads {checkpoint.FORMAT_VERSION}" in str(caught.value)


# hostile files


@pytest.mark.parametrize("name", ["../secret.safetensors", "/{root}/secret.safetensors", ".", ".."])
def test_a_file_outside_of_the_checkpoint_is_refused(saved, name):
    data = save_tensors({"/weight": torch.ones(1)})
    (saved.parent / "secret.safetensors").write_bytes(data)
    name = name.format(root=saved.parent)
    write_manifest(
        saved, files={name: entry(data)}, state={"x": {"$tensor": ["secret", "/weight"]}}
    )
    with pytest.raises(CheckpointError):
        load(saved)


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
@pytest.mark.parametrize("name", ["network.safetensors", "network.pt", "network.npz"])
def test_nothing_in_a_checkpoint_executes(saved, tmp_path, kind, name):
    marker = tmp_path / "marker"
    path = saved / name
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    elif kind == "torch":
        torch.save({"/weight": Bomb(marker)}, path)
    else:
        with path.open("wb") as file:
            np.savez(file, weight=np.array([Bomb(marker)], object))
    write_manifest(saved, files={name: entry(path.read_bytes())})
    with pytest.raises(CheckpointError, match="is corrupt"):
        load(saved)
    assert not marker.exists()
    (saved / "manifest.json").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError):
        load(saved)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"sha256": "", "manifest": ' + "[" * 100_000,
        '{"sha256": "", "manifest": "\\ud800"}',
        '{"sha256": 1e999999, "manifest": ' + "9" * 5000 + "}",
    ],
    ids=["deep", "deep inside", "half a character", "long number"],
)
def test_a_manifest_made_to_hurt_is_a_plain_error(saved, text):
    (saved / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="is corrupt"):
        load(saved)


def test_a_header_that_lies_about_its_size_is_refused(saved):
    data = (2**62).to_bytes(8, "little") + b"{}"
    (saved / "network.safetensors").write_bytes(data)
    write_manifest(saved, files={"network.safetensors": entry(data)})
    with pytest.raises(CheckpointError, match="is corrupt"):
        load(saved)


# a disk that fails, a process that dies


class Killed(BaseException):
    """Stands for SIGKILL: from here on the process changes nothing."""


def fail_at(patch, step, error):
    """Let a change of the disk fail, counted from 0; after `Killed` all later ones fail too."""
    steps = iter(range(1_000_000))

    def wrap(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            now = next(steps)
            if now == step or (now > step and isinstance(error, Killed)):
                if name == "fsync":  # of the file only the first half is on the disk
                    path = Path(f"/proc/self/fd/{args[0]}")
                    if path.is_file():
                        os.truncate(path, path.stat().st_size // 2)
                raise error
            return original(*args, **kwargs)

        patch.setattr(owner, name, call)

    wrap(os, "fsync")
    wrap(Path, "rename")
    wrap(Path, "mkdir")
    if isinstance(error, Killed):
        wrap(shutil, "rmtree")
        wrap(os, "link")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, code):
    earlier, later = small_state(), {**small_state(), "update": 8}
    save(tmp_path / "000007", earlier)
    for step in itertools.count():
        with monkeypatch.context() as patch:
            fail_at(patch, step, OSError(code, os.strerror(code)))
            try:
                save(tmp_path / "000008", later)
                break
            except CheckpointError as error:
                message = str(error)
        assert "cannot write checkpoint" in message
        assert os.strerror(code) in message
        assert "MB free" in message
        assert bits(load(tmp_path / "000007")) == bits(earlier)
        if (tmp_path / "000008").exists():  # it failed after the rename
            assert bits(load(tmp_path / "000008")) == bits(later)
            shutil.rmtree(tmp_path / "000008")
        assert os.listdir(tmp_path) == ["000007"]
    assert step >= 7  # a directory, three files and a manifest, the directory again, the new name
    assert bits(load(tmp_path / "000008")) == bits(later)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_a_chunk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, code):
    earlier, later = replay(A, B), replay(A, chunk(6, x=np.zeros(2)), B)
    save(tmp_path / "000007", earlier)
    for step in itertools.count():
        with monkeypatch.context() as patch:
            fail_at(patch, step, OSError(code, os.strerror(code)))
            try:
                save(tmp_path / "000008", later, tmp_path / "000007")
                break
            except CheckpointError as error:
                assert os.strerror(code) in str(error)
        assert bits(load(tmp_path / "000007")) == bits(earlier)
        shutil.rmtree(tmp_path / "000008", ignore_errors=True)  # it failed after the rename
        assert os.listdir(tmp_path) == ["000007"]
    assert step >= 7  # a directory, three files and a manifest, the directory again, the new name
    assert bits(load(tmp_path / "000008")) == bits(later)


def test_a_disk_too_full_for_a_link_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path / "000007", replay(A))
    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path / "000008", replay(chunk(1, read=unread)), tmp_path / "000007")
    assert os.listdir(tmp_path) == ["000007"]
    assert bits(load(tmp_path / "000007")) == bits(replay(A))


def test_a_process_killed_at_any_step_leaves_whole_checkpoints_only(tmp_path, monkeypatch):
    earlier = {**small_state(), **replay(A, B)}
    later = {**small_state(), **replay(A, chunk(6, x=np.zeros(2))), "update": 8}
    for step in itertools.count():
        directory = tmp_path / str(step)
        save(directory / "000007", earlier)
        with monkeypatch.context() as patch:
            fail_at(patch, step, Killed())
            try:
                save(directory / "000008", later, directory / "000007")
                break
            except Killed:
                pass
        assert bits(load(directory / "000007")) == bits(earlier)
        if not (directory / "000008").exists():  # what is left of the first try does not matter
            save(directory / "000008", later, directory / "000007")
        assert bits(load(directory / "000008")) == bits(later)
        assert sorted(os.listdir(directory)) == ["000007", "000008"]
    assert step >= 10


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk))
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(("umount", str(disk)), check=True)


def test_a_full_disk_leaves_the_earlier_checkpoint(tiny_disk):
    small, large = {"x": torch.ones(20_000)}, {"x": torch.ones(20_000), "y": torch.ones(40_000)}
    save(tiny_disk / "000001", small)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tiny_disk / "000002", large)  # 240 kB do not fit beside 80 kB
    assert os.listdir(tiny_disk) == ["000001"]
    assert bits(load(tiny_disk / "000001")) == bits(small)
    save(tiny_disk / "000002", small)
    assert bits(load(tiny_disk / "000002")) == bits(small)


def test_a_linked_chunk_takes_no_space(tiny_disk):
    large = chunk(1, x=np.ones(160_000, np.uint8))
    save(tiny_disk / "000001", replay(large))
    save(tiny_disk / "000002", replay(large), tiny_disk / "000001")
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tiny_disk / "000003", replay(chunk(2, read=large.read)), tiny_disk / "000002")
    assert sorted(os.listdir(tiny_disk)) == ["000001", "000002"]
    for name in ("000001", "000002"):
        assert bits(load(tiny_disk / name)) == bits(replay(large))
