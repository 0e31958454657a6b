"""Files of maps, moments and folds that no honest writer wrote: each is refused by name, and no reader hangs or traces back."""

import contextlib
import json
import os
import random
import subprocess

import numpy as np
import pytest
from safetensors import safe_open

import embridge as eb
from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.errors import EmbridgeError, UnreadableFileError
from embridge.tensors import write_tensors
from embridge.testing.translators import planted_anchors
from tests.support import ROOT

READERS = {
    "map": eb.load_map,
    "kernel": eb.load_map,
    "calibrated": eb.LinearMap.load,
    "moments": Moments.load,
    "folds": FoldMoments.load,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    train, held_out = planted_anchors(300, 5, 6).split(0.4)
    ridge = eb.fit(train, "ridge", alpha=0.1)
    written = {
        "map": ridge,
        "kernel": eb.fit(train, "kernel", alpha=0.1, shrinkage_target_weight=1.0, penalty=1.0, landmarks=20),
        "calibrated": eb.calibrate(ridge, train, held_out),
        "moments": train.moments(full=False),
        "folds": train.folds(full=True),
    }
    for name, value in written.items():
        value.save(folder / f"{name}.safetensors")
    return folder


def read(path):
    with safe_open(path, "np") as file:
        return {name: np.array(file.get_tensor(name)) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def forged(files, kind, tmp_path, change):
    """A copy of a file with changed content and a right checksum."""
    tensors, metadata = read(files / f"{kind}.safetensors")
    metadata.pop("checksum")
    change(tensors, metadata)
    path = tmp_path / f"{kind}.safetensors"
    write_tensors(path, tensors, metadata)
    return path


def put(name, value):
    def change(tensors, metadata):
        tensors[name].flat[1] = value

    return change


def set_metadata(name, value):
    return lambda tensors, metadata: metadata.update({name: value})


def scaled(name, factor):
    return lambda tensors, metadata: tensors.update({name: tensors[name] * factor})


DEEP = "[" * 100_000


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_nobody_touched_is_read(files, tmp_path, kind):
    READERS[kind](files / f"{kind}.safetensors")
    READERS[kind](forged(files, kind, tmp_path, lambda tensors, metadata: None))


@pytest.mark.parametrize(("kind", "change"), [
    ("map", put("coef", np.nan)),
    ("map", put("intercept", np.inf)),
    ("map", scaled("coef", 2)),
    ("map", put("anchor_hashes", 0)),
    ("map", lambda t, m: t.update(anchor_hashes=t["anchor_hashes"].astype(np.float32))),
    ("map", lambda t, m: t.pop("coef")),
    ("map", lambda t, m: m.pop("fingerprint")),
    ("map", lambda t, m: m.pop("record")),
    ("map", set_metadata("record", DEEP)),
    ("map", set_metadata("record", "{}")),
    ("map", set_metadata("record", json.dumps({"method": ["a"]}))),
    ("map", set_metadata("record", json.dumps({"method": "a", "anchors": "many"}))),
    ("map", set_metadata("record", json.dumps({"method": "a", "seconds": None}))),
    ("map", set_metadata("record", json.dumps({"method": "a", "parameters": []}))),
    ("map", set_metadata("record", json.dumps({"method": "a", "candidates": [{"parameters": {}, "score": "good"}]}))),
    ("map", set_metadata("source", DEEP)),
    ("map", set_metadata("source", json.dumps({"name": "old", "dim": 1e400, "metric": "l2", "normalized": False}))),
    ("kernel", put("landmarks", np.nan)),
    ("kernel", put("weights", -np.inf)),
    ("kernel", scaled("weights", 2)),
    ("kernel", set_metadata("gamma", "nan")),
    ("kernel", set_metadata("gamma", "wide")),
    ("kernel", lambda t, m: t.pop("landmarks")),
    ("kernel", lambda t, m: m.pop("fingerprint")),
    ("kernel", lambda t, m: t.update(landmarks=t["landmarks"][:, :3])),
    ("calibrated", put("confidence.scores", 9e9)),
    ("calibrated", set_metadata("confidence", DEEP)),
    ("moments", put("sxx", np.nan)),
    ("moments", put("mean_y", np.inf)),
    ("moments", put("sxx", 1e6)),  # not symmetric
    ("moments", scaled("sxx", -1)),
    ("moments", scaled("sxy", 100)),  # more than Sxx and Syy allow
    ("moments", lambda t, m: t.update(sxx=t["sxx"].astype(np.float32))),
    ("moments", lambda t, m: t.update(sxy=t["sxy"].T)),
    ("moments", set_metadata("n", "0")),
    ("moments", set_metadata("n", "-3")),
    ("moments", set_metadata("n", "2.5")),
    ("moments", set_metadata("n", "true")),
    ("moments", set_metadata("n", DEEP)),
    ("folds", put("sxy.2", np.nan)),
    ("folds", scaled("sxy.3", 100)),
    ("folds", put("x.1", np.nan)),
    ("folds", lambda t, m: t.pop("hashes.4")),
    ("folds", lambda t, m: t.update({"y.0": t["y.0"][:-1]})),
    ("folds", lambda t, m: t.update({"syy.0": np.diag(t["syy.0"]).copy()})),
    ("folds", lambda t, m: t.update(anchor_hashes=t["anchor_hashes"][:-1])),
    ("folds", lambda t, m: t.update(anchor_hashes=t["anchor_hashes"][::-1])),
    ("folds", set_metadata("n", "7")),
    ("folds", set_metadata("n", "[]")),
    ("folds", lambda t, m: m.update(n=json.dumps([*json.loads(m["n"])[:-1], 10**30]))),
])  # fmt: skip
def test_forged_files_with_a_right_checksum_are_refused(files, tmp_path, kind, change):
    path = forged(files, kind, tmp_path, change)
    with pytest.raises(UnreadableFileError, match=f"{kind}.safetensors"):
        READERS[kind](path)


@pytest.mark.parametrize("kind", READERS)
def test_everything_in_a_file_is_under_its_checksum(files, tmp_path, kind):
    from safetensors.numpy import save_file

    tensors, metadata = read(files / f"{kind}.safetensors")
    for name in tensors:
        changed = {**tensors, name: tensors[name].copy()}
        changed[name].flat[0] += 1
        save_file(changed, tmp_path / "changed", metadata)
        with pytest.raises(UnreadableFileError, match="was altered"):
            READERS[kind](tmp_path / "changed")
    for name in set(metadata) - {"checksum", "format"}:
        save_file(tensors, tmp_path / "changed", metadata | {name: metadata[name] + " "})
        with pytest.raises(UnreadableFileError, match="was altered"):
            READERS[kind](tmp_path / "changed")


def test_moments_without_a_checksum_are_refused_and_maps_are_not(files, tmp_path):
    from safetensors.numpy import save_file

    for kind in READERS:
        tensors, metadata = read(files / f"{kind}.safetensors")
        metadata.pop("checksum")
        save_file(tensors, tmp_path / kind, metadata)
    for kind in ("map", "kernel", "calibrated"):
        READERS[kind](tmp_path / kind)
    for kind in ("moments", "folds"):
        with pytest.raises(UnreadableFileError, match=f"{kind}.* lacks a checksum"):
            READERS[kind](tmp_path / kind)


@pytest.mark.parametrize("kind", READERS)
def test_a_random_change_of_bytes_ends_in_an_error_of_ours_or_in_the_same_value(files, tmp_path, kind):
    whole, rng, path = (files / f"{kind}.safetensors").read_bytes(), random.Random(kind), tmp_path / "mutated"
    expected = READERS[kind](files / f"{kind}.safetensors")
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(3000, len(content)))
            content[place] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)
        found = None
        with contextlib.suppress(EmbridgeError):  # anything else fails the test
            found = READERS[kind](path)
        if found is not None and b'"checksum"' in content:  # files of 0.1 have none, so a damaged name of it passes
            assert type(found) is type(expected)
            mine = getattr(found, "anchor_hashes", np.empty(0))
            np.testing.assert_array_equal(mine, getattr(expected, "anchor_hashes", np.empty(0)))


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_is_refused_and_not_waited_for(commands, tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    code = "import sys\nfrom tests.maps.test_files import READERS\nREADERS[sys.argv[1]](sys.argv[2])"
    command = [commands / "python-c", code, kind, str(tmp_path / "pipe")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    assert "is not a regular file" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("kind", READERS)
def test_a_header_without_bounds_is_not_read(tmp_path, kind):
    path = tmp_path / "header"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(UnreadableFileError, match="its header claims"):
        READERS[kind](path)
    for content in (b"", b"{}", b"\x02\0\0\0\0\0\0\0{}", b"\x03\0\0\0\0\0\0\0[1]"):
        path.write_bytes(content)
        with pytest.raises(UnreadableFileError, match="header"):
            READERS[kind](path)


def test_moments_that_overflow_are_not_made():
    anchors = planted_anchors(20, 3, 3)
    with pytest.raises(eb.EmbridgeError, match="finite"):
        Moments.from_rows(np.full((20, 3), 1e200) * np.arange(1, 21)[:, None], anchors.y, anchors.source, anchors.target)
