"""Data and functions for the tests of decoders."""

import json
import os
import warnings
import zipfile

import numpy as np
import torch

import embridge as eb

P = 6
SPACE = eb.Space("taught", P)


def rows(n=300, seed=0, dim=P):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def labeled(n=300, names=("a", "b", "c")):
    x = rows(n)
    return x, np.array(names)[x[:, : len(names)].argmax(axis=1)]


def onnx_of(model, path, **metadata):
    from skl2onnx import to_onnx

    zipmap = metadata.pop("zipmap", None)
    options = {} if zipmap is None else {id(model): {"zipmap": zipmap}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = to_onnx(model, rows(1), options=options)
    for key, value in metadata.items():
        made.metadata_props.add(key=f"embridge.{key}", value=value)
    path.write_bytes(made.SerializeToString())
    return path


class Net(torch.nn.Module):
    def __init__(self, outputs=3, last=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(P, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU(), torch.nn.Linear(8, outputs)
        )
        self.last = last or torch.nn.Identity()

    def forward(self, x):
        return self.last(self.layers(x))


def exported(net, dynamic=None, n=4):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net.eval(), (torch.zeros(n, P),), dynamic_shapes=dynamic)


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def packed(parts, path, **changed):
    members, root = parts
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | changed).items():
            archive.writestr(f"{root}/{name}", data)
    return path


def edited(parts, edit, part="models/model.json"):
    program = json.loads(parts[0][part])
    edit(program)
    return {part: json.dumps(program).encode()}
