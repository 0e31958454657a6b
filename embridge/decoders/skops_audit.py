"""Checks a skops file before skops opens it, and the loaded estimator before it runs.

skops audits types, not values: a schema can share its parts so that walking it never ends, an array can claim any size, a
sparse matrix and a support vector machine hold numbers that compiled code uses as memory offsets.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from embridge.decoders.archive import read_archive, write_archive
from embridge.decoders.bounds import NODES, parse_json
from embridge.errors import DecoderError

_SCHEMA = "schema.json"


def audited_skops(data: bytes) -> tuple[bytes, set[str]]:
    """A new archive of the parts of a skops file, and the names of types that skops trusts but that are not safe.

    Raises
    ------
    ValueError, LookupError, TypeError
        It is damaged, or beyond a bound.
    """
    members = read_archive(data, compressed=True)
    if _SCHEMA not in members:
        raise ValueError("it lacks schema.json")
    schema = parse_json(members[_SCHEMA])
    size = _expanded(schema, {})
    if size > NODES:
        raise ValueError(f"its schema stands for {size:,} values; the limit is {NODES:,}")
    unsafe = set()
    for node in _nodes(schema):
        if node["__loader__"] == "NdArrayNode" and node.get("type") == "numpy":
            _check_array(members[node["file"]], node["file"])
        elif node["__loader__"] == "SparseMatrixNode":  # compiled code uses its indices as memory offsets
            unsafe.add(f"{node['__module__']}.{node['__class__']}")
    return write_archive(members), unsafe


def _expanded(value: Any, sizes: dict[Any, int]) -> int:
    """Number of values of a schema when shared parts, which have one id, are counted at every reference."""
    if isinstance(value, list):
        return 1 + sum(_expanded(child, sizes) for child in value)
    if not isinstance(value, dict):
        return 1
    own = value.get("__id__")
    if own is not None and own in sizes:
        return sizes[own]
    if own is not None:
        sizes[own] = 1  # a reference to itself
    size = 1 + sum(_expanded(child, sizes) for child in value.values())
    if own is not None:
        sizes[own] = size
    return size


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    stack = [schema]
    while stack:
        found = stack.pop()
        if isinstance(found, dict):
            if "__loader__" in found:
                yield found
            stack += found.values()
        elif isinstance(found, list):
            stack += found


def _check_array(content: bytes, name: str) -> None:
    """Refuse an array whose header states another size than its data have."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"the array {name!r} is of an unknown version")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    count = int(np.prod([int(n) for n in shape], dtype=object))
    if dtype.hasobject or count < 0 or count * dtype.itemsize != len(content) - file.tell() or (count and not dtype.itemsize):
        raise ValueError(f"the array {name!r} of shape {shape} does not have the size that its header states")


def tame(path: str, estimator: Any) -> None:
    """Keep an estimator of a file in this process, and refuse numbers that make compiled code read outside of its arrays.

    Raises
    ------
    DecoderError
    """
    for part in _parts(estimator):
        for name in ("n_jobs", "memory"):  # any number of processes; a folder of pickles
            if name in vars(part):
                setattr(part, name, None)
        fact = _contradiction(part)
        if fact:
            raise DecoderError(f"{path!r} holds a {type(part).__name__} that is inconsistent: {fact}. It was not used.")


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator and all objects with attributes inside it."""
    stack, seen = [estimator], set()
    while stack:
        found = stack.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, dict):
            stack += found.values()
        elif isinstance(found, list | tuple | set) or (isinstance(found, np.ndarray) and found.dtype == object):
            stack += list(found)
        elif hasattr(found, "__dict__") and not isinstance(found, type):
            yield found
            stack += vars(found).values()


def _contradiction(part: Any) -> str:
    """The first fault in the numbers that scikit-learn's compiled code does not check; empty where there is none."""
    values = vars(part)
    names = {base.__name__ for base in type(part).__mro__}
    width = values.get("n_features_in_")
    width = width if isinstance(width, int | np.integer) else -1
    for name in ("_fit_X", "cluster_centers_"):
        if name in values and not _has_shape(values[name], (None, width)):
            return f"{name} does not have {width} columns"
    if "NeighborsBase" in names and "classes_" in values and not _are_places(values.get("_y"), len(values["classes_"]), values):
        return "_y are not positions in classes_"
    return _svm_contradiction(part, values, int(width)) if "BaseLibSVM" in names else ""


def _svm_contradiction(machine: Any, values: dict[str, Any], width: int) -> str:
    """The first fault in the array sizes that libsvm does not check; empty where there is none."""
    if values.get("kernel") == "precomputed" or values.get("_sparse"):
        return "its kernel is precomputed, or its vectors are sparse"
    counts, vectors = values.get("_n_support"), values.get("support_vectors_")
    if not isinstance(counts, np.ndarray) or counts.ndim != 1 or counts.dtype.kind != "i" or not isinstance(vectors, np.ndarray):
        return "_n_support or support_vectors_ are not arrays"
    classes, total = len(counts), len(vectors)
    if machine._impl in ("c_svc", "nu_svc"):
        if (counts < 0).any() or int(counts.sum(dtype=np.int64)) != total:
            return f"_n_support are not counts of {total} vectors"
    elif classes != 2:
        return "_n_support is not of shape (2,)"
    pairs = classes * (classes - 1) // 2
    shapes = {
        "support_": (total,),
        "support_vectors_": (total, width),
        "_dual_coef_": (classes - 1, total),
        "_intercept_": (pairs,),
    }
    for name, shape in shapes.items():
        if not _has_shape(values.get(name), shape):
            return f"{name} is not of shape {shape}"
    for name in ("_probA", "_probB"):
        if not (_has_shape(values.get(name), (0,)) or _has_shape(values.get(name), (pairs,))):
            return f"{name} is not of shape ({pairs},)"
    return ""


def _has_shape(array: Any, shape: tuple[int | None, ...]) -> bool:
    if not isinstance(array, np.ndarray) or array.ndim != len(shape):
        return False
    return all(expected is None or found == expected for found, expected in zip(array.shape, shape, strict=True))


def _are_places(array: Any, count: int, values: dict[str, Any]) -> bool:
    """True for integers from 0 to `count` - 1, one per fitted row."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or len(array) != len(values.get("_fit_X", ())):
        return False
    return not array.size or (int(array.min()) >= 0 and int(array.max()) < count)
