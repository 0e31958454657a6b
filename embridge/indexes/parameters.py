"""Search parameters of one call for FAISS. The index itself, which other threads may be searching, is not changed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import faiss

from embridge.errors import FaissIndexError

_MOST = 1 << 20  # of efSearch and nprobe: FAISS allocates memory for them before it checks the number of vectors
_MOST_REFINED = 1000  # FAISS's own limit for k_factor
_STATEFUL = {"k_factor": (1, _MOST_REFINED), "nprobe": (1, _MOST), "max_codes": (0, 1 << 62)}


def search_parameters(index: Any, text: str) -> Any:
    """FAISS search parameters for an index from ``"nprobe=32,efSearch=128"``, nested as the index is; None for an empty text.

    Other parameters keep the value of the index. Names are those of FAISS's `ParameterSpace`: ``nprobe``, ``max_codes``,
    ``efSearch``, ``ht`` (of polysemous codes), ``k_factor_rf`` (of a refined index), and ``quantizer_`` before those of the
    coarse quantizer.

    Parameters
    ----------
    index : faiss.Index
    text : str
        ``name=value``, separated by commas or blanks.

    Raises
    ------
    FaissIndexError
        A name that this type of index does not have, or a value out of range.
    """
    values: dict[str, float] = {}
    for part in text.replace(",", " ").split():
        name, _, value = part.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise FaissIndexError.parameters(text, f"{part!r} is not NAME=NUMBER") from None
    if not values:
        return None
    found = _nested(index, values, text)
    if values:
        raise FaissIndexError.parameters(text, f"it has no {', '.join(values)}")
    return found


def _nested(index: Any, values: dict[str, float], text: str) -> Any:
    """Parameters of an index; used values are removed from `values`."""
    part = faiss.downcast_index(index)
    kind = type(part).__name__
    if isinstance(part, faiss.IndexIDMap):
        return _nested(part.index, values, text)
    if isinstance(part, faiss.IndexPreTransform):
        inner = _nested(part.index, values, text)
        return None if inner is None else faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(part, faiss.IndexRefine):
        factor = _number(values, "k_factor_rf", part.k_factor, 1, _MOST_REFINED, text)
        inner = _nested(part.base_index, values, text)
        options = {} if inner is None else {"base_index_params": inner}
        return faiss.IndexRefineSearchParameters(k_factor=factor, **options)
    if isinstance(part, faiss.IndexHNSW) and "efSearch" in values:
        return faiss.SearchParametersHNSW(efSearch=int(_number(values, "efSearch", 0, 1, _MOST, text)))
    if kind == "IndexPQ" and "ht" in values:
        threshold = int(_number(values, "ht", 0, 0, 1 << 30, text))
        plain = threshold >= 8 * part.pq.code_size
        search_type = faiss.IndexPQ.ST_PQ if plain else faiss.IndexPQ.ST_polysemous
        return faiss.SearchParametersPQ(search_type=search_type, polysemous_ht=threshold)
    if isinstance(part, faiss.IndexIVF) and not _is_packed_sum(kind):
        return _lists(part, values, text)
    return None


def stateful(index: Any) -> dict[str, Any]:
    """Parameters that can only be set on the index, by name, with the index that has them; empty for most types."""
    part = faiss.downcast_index(index)
    kind = type(part).__name__
    if isinstance(part, faiss.IndexIDMap | faiss.IndexPreTransform):
        return stateful(part.index)
    if isinstance(part, faiss.IndexRefine):
        return stateful(part.base_index)
    if isinstance(part, faiss.IndexIVFPQR):
        return {"k_factor": part}
    return {"nprobe": part, "max_codes": part} if _is_packed_sum(kind) else {}


@contextlib.contextmanager
def in_force(index: Any, text: str) -> Iterator[str]:
    """Set the parameters that can only be set on the index, restore them on exit, and yield the remaining text.

    No other search of the index may run meanwhile.
    """
    owners, rest, before = stateful(index), [], {}
    try:
        for token in text.replace(",", " ").split():
            name, _, value = token.partition("=")
            if name not in owners:
                rest.append(token)
                continue
            before.setdefault(name, getattr(owners[name], name))
            least, most = _STATEFUL[name]
            try:
                number = _number({name: float(value)}, name, 0, least, most, text)
            except ValueError:
                raise FaissIndexError.parameters(text, f"{token!r} is not NAME=NUMBER") from None
            setattr(owners[name], name, number if name == "k_factor" else int(number))
        yield ",".join(rest)
    finally:
        for name, value in before.items():
            setattr(owners[name], name, value)


def _is_packed_sum(kind: str) -> bool:
    """IVF over packed additive codes is the only type with lists that accepts no parameters per call."""
    return kind.startswith("IndexIVF") and "QuantizerFastScan" in kind


def _lists(part: Any, values: dict[str, float], text: str) -> Any:
    options: dict[str, Any] = {"qb": part.qb} if isinstance(part, faiss.IndexIVFRaBitQ) else {}
    options |= {
        "nprobe": int(_number(values, "nprobe", part.nprobe, 1, _MOST, text)),
        "max_codes": _codes(values, part.max_codes, text),
    }
    inner = {name.removeprefix("quantizer_"): value for name, value in values.items() if name.startswith("quantizer_")}
    if isinstance(faiss.downcast_index(part.quantizer), faiss.IndexHNSW) and "efSearch" in values:
        inner["efSearch"] = values.pop("efSearch")
    if inner:
        rest = dict(inner)
        quantizer = _nested(part.quantizer, rest, text)
        for name in set(inner) - set(rest):
            values.pop(f"quantizer_{name}", None)
        options |= {} if quantizer is None else {"quantizer_params": quantizer}
    if isinstance(part, faiss.IndexIVFPQ):
        threshold = _number(values, "ht", part.polysemous_ht, 0, 1 << 30, text)
        options["polysemous_ht"] = 0 if threshold >= 8 * part.pq.code_size else int(threshold)
        options["scan_table_threshold"] = part.scan_table_threshold
        return faiss.IVFPQSearchParameters(**options)
    if isinstance(part, faiss.IndexIVFRaBitQ):
        return faiss.IVFRaBitQSearchParameters(**options)
    return faiss.SearchParametersIVF(**options)


def _codes(values: dict[str, float], default: int, text: str) -> int:
    if math.isinf(values.get("max_codes", 0)):  # in FAISS this means no limit
        values.pop("max_codes")
        return 0
    return int(_number(values, "max_codes", default, 0, 1 << 62, text))


def _number(values: dict[str, float], name: str, default: float, least: int, most: int, text: str) -> float:
    if name not in values:
        return default
    value = values.pop(name)
    if not least <= value <= most:
        raise FaissIndexError.parameters(text, f"{name} must be between {least:,} and {most:,}")
    return value


__all__ = ["in_force", "search_parameters", "stateful"]
