"""Mutated decoders, with valid checksums where the format has them: an error that names the file, or a decoder; never a crash."""

import io
import json
import os
import random
import subprocess
import sys
import zipfile

import pytest

CASES = 30

WORKER = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import embridge as eb
rows = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
for path in sys.argv[1:]:
    try:
        found = eb.open_decoder(path, space=None if path.endswith("safetensors") else eb.Space("taught", 6))
        found.decode(rows)
        found.decode(1e6 * rows[:1])
        print("opened", path)
    except eb.EmbridgeError as e:
        assert path.rpartition("/")[2] in str(e), str(e)
        print("refused", path)
"""

ODD = [
    None,
    -1,
    0,
    2**31,
    2**63,
    -(2**63),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "s77",
    "9**9**9",
    [],
    {},
    [[]],
    True,
    "../x",
    "a" * 5000,
    10**12,
]


def mutate_json(value, rng):
    """A value of nested JSON replaced, removed or exchanged."""
    places, stack = [], [value]
    while stack:
        found = stack.pop()
        items = found.items() if isinstance(found, dict) else enumerate(found)
        for key, child in items:
            places.append((found, key))
            if isinstance(child, dict | list):
                stack.append(child)
    for holder, key in rng.sample(places, min(len(places), rng.choice([1, 1, 3]))):
        if rng.random() < 0.8 or isinstance(holder, list):
            if not isinstance(holder, list) or key < len(holder):
                holder[key] = rng.choice(ODD)
        else:
            holder.pop(key, None)
    return value


def mutate_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        place = rng.randrange(max(1, len(data)))
        kind = rng.random()
        if kind < 0.4 and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind < 0.7:
            data[place : place + 8] = rng.choice([b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f", b""])
        elif kind < 0.9:
            data[place:place] = data[place : place + 16]
        else:
            del data[place:]
    return bytes(data)


def mutate_archive(data, rng):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([n for n in members if n.endswith(".json")] if rng.random() < 0.7 else sorted(members))
    if name.endswith(".json"):
        members[name] = json.dumps(mutate_json(json.loads(members[name]), rng)).encode()
    else:
        members[name] = mutate_bytes(members[name], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for one, content in members.items():
            archive.writestr(one, content)
    return buffer.getvalue()


def mutate_tensors(data, rng):
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    facts = header["__metadata__"]
    if rng.random() < 0.5:
        facts["head"] = json.dumps(mutate_json(json.loads(facts["head"]), rng))
    else:
        mutate_json(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    import embridge as eb
    from tests.decoders.support import SPACE, Net, exported, labeled, onnx_of

    folder = tmp_path_factory.mktemp("originals")
    x, y = labeled()
    eb.save_decoder(LogisticRegression().fit(x, y), folder / "d.safetensors", SPACE)
    eb.save_decoder(SVC().fit(x, y), folder / "d.skops", SPACE)
    eb.save_decoder(exported(Net()), folder / "d.pt2", SPACE)
    onnx_of(LogisticRegression().fit(x, y), folder / "d.onnx", zipmap=False)
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "skops", "pt2", "onnx"])
def test_a_mutated_decoder_is_an_error_that_names_it(originals, tmp_path, suffix):
    whole = (originals / f"d.{suffix}").read_bytes()
    wise = {"safetensors": mutate_tensors, "skops": mutate_archive, "pt2": mutate_archive, "onnx": mutate_bytes}[suffix]
    paths = []
    for seed in range(CASES):
        rng = random.Random(f"{suffix}{seed}")
        path = tmp_path / f"seed-{seed}.{suffix}"
        path.write_bytes((wise if rng.random() < 0.75 else mutate_bytes)(whole, rng))
        paths.append(str(path))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WORKER, *paths], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]  # negative: it ended by a signal
    lines = done.stdout.splitlines()
    assert len(lines) == CASES
    assert sum(line.startswith("refused") for line in lines) > CASES // 2
