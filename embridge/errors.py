"""Every error that embridge raises on purpose.

Each class mixes in the builtin that a caller would catch without knowing embridge. A message gives the fact, its numbers, then a
hint. A classmethod composes a message that several modules raise; other messages stand where they are raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class EmbridgeError(Exception):
    """Base of every error of the library."""


def first_few(items: Sequence[Any], limit: int = 5) -> str:
    """The first items of a list and its length, for messages."""
    shown = ", ".join(repr(item) for item in list(items)[:limit])
    return shown + (f", ... ({len(items):,} in all)" if len(items) > limit else "")


def n_rows(n: int) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{n:,} row" + ("" if n == 1 else "s")


class SpaceMismatchError(EmbridgeError, ValueError):
    """Vectors of one space were given where another space is expected."""

    @classmethod
    def width(cls, what: str, expected: int, found: int) -> SpaceMismatchError:
        return cls(f"{what} expects {expected}-dimensional vectors. Got {found} dimensions instead.")

    @classmethod
    def contradiction(cls, where: str, field: str, declared: Any, found: Any) -> SpaceMismatchError:
        return cls(
            f"{where} was declared as {field} {declared!r}, but its own metadata says {field} {found!r}. "
            "Hint: leave the declaration out."
        )

    @classmethod
    def unrelated(cls, via: tuple[str, str], queries: str, index: str) -> SpaceMismatchError:
        return cls(
            f"The map translates {via[0]!r} -> {via[1]!r}, but the queries are of {queries!r} and the index holds {index!r}. "
            f"Hint: give a map between {queries!r} and {index!r}, in either direction."
        )


class UndeclaredSpaceError(EmbridgeError, ValueError):
    """Neither the file nor the caller names the space of the vectors."""

    @classmethod
    def of(cls, where: str) -> UndeclaredSpaceError:
        return cls(
            f"{where} does not name the encoder of its vectors. Hint: name the space with --space NAME "
            "(--source-space, --target-space where there are two), or eb.open(..., space=NAME)."
        )


class BadVectorsError(EmbridgeError, ValueError):
    """Vectors that cannot be used: NaN or infinite values, zero vectors under cosine, ragged or of a wrong width."""

    @classmethod
    def rows(cls, where: str, reason: str, ids: Sequence[Any]) -> BadVectorsError:
        return cls(f"{where} has {n_rows(len(ids))} with {reason}: ids {first_few(ids)}. Hint: remove or re-encode them.")

    @classmethod
    def none_left(cls, where: str, count: int) -> BadVectorsError:
        return cls(f"{where} has {n_rows(count)}, and none of them can be translated.")

    @classmethod
    def dtype(cls, where: str, found: Any) -> BadVectorsError:
        return cls(f"{where} must hold float16, float32 or float64 values. Got {found} instead.")


class BadIdsError(EmbridgeError, ValueError):
    """Ids that are null, repeated, or of an unsupported type."""

    @classmethod
    def null(cls, where: str, count: int) -> BadIdsError:
        return cls(f"{where} has {n_rows(count)} without an id (null). Every row needs an id.")

    @classmethod
    def duplicate(cls, where: str, ids: Sequence[Any]) -> BadIdsError:
        return cls(f"{where} holds ids more than once: {first_few(ids)}. Hint: ids must be unique; remove the repeated rows.")

    @classmethod
    def kind(cls, where: str, found: Any) -> BadIdsError:
        return cls(f"{where} must have ids of type string or int64. Got {found} instead.")

    @classmethod
    def kinds_differ(cls, source: str, source_kind: str, target: str, target_kind: str) -> BadIdsError:
        return cls(
            f"Ids of {source} are {source_kind}, ids of {target} are {target_kind}; they cannot be matched. "
            "Hint: cast one of the two id columns."
        )

    @classmethod
    def unknown(cls, where: str, ids: Sequence[Any]) -> BadIdsError:
        return cls(f"{where} names unknown ids: {first_few(ids)}.")


class CollectionError(EmbridgeError, ValueError):
    """A collection that cannot be read: a missing column, no rows, or nothing at the path."""

    @classmethod
    def no_column(cls, where: str, column: str, columns: Sequence[str], option: str) -> CollectionError:
        return cls(f"{where} has no column {column!r}. Columns: {', '.join(columns)}. Hint: name it with {option}.")

    @classmethod
    def empty(cls, where: str) -> CollectionError:
        return cls(f"{where} holds no rows.")

    @classmethod
    def reserved_column(cls, where: str, column: str) -> CollectionError:
        return cls(f"{where} already has a column {column!r}, which the output needs. Hint: rename it.")

    @classmethod
    def columns_differ(cls, where: str, reason: Any) -> CollectionError:
        return cls(f"Columns of the files in {where} do not match: {str(reason).splitlines()[0]}")


class MissingFileError(EmbridgeError, FileNotFoundError):
    """A file or folder does not exist."""

    @classmethod
    def at(cls, path: str) -> MissingFileError:
        return cls(f"There is no file or folder at {path!r}.")


class UnreadableFileError(EmbridgeError, OSError):
    """A file that is truncated, damaged or of another format than expected."""

    @classmethod
    def at(cls, path: str, kind: str, reason: Any) -> UnreadableFileError:
        text = str(reason).strip() or type(reason).__name__
        fact = text.splitlines()[0].rstrip(".")
        return cls(f"{path!r} cannot be read as {kind}: {fact}. Hint: it may be truncated or of another kind.")

    @classmethod
    def foreign(cls, path: str, kind: str, lacks: str) -> UnreadableFileError:
        return cls(f"{path!r} is not {kind}: it lacks {lacks}.")

    @classmethod
    def altered(cls, path: str) -> UnreadableFileError:
        return cls(f"{path!r} was altered: its content does not match its fingerprint.")


class ChangedSourceError(EmbridgeError, RuntimeError):
    """An input changed while it was read."""

    @classmethod
    def of(cls, where: str, how: str) -> ChangedSourceError:
        return cls(f"{where} changed while it was read: {how}. Hint: run again when nothing writes there.")


class OutputExistsError(EmbridgeError, FileExistsError):
    """The output exists already."""

    @classmethod
    def at(cls, path: str) -> OutputExistsError:
        return cls(f"{path!r} exists already. Hint: give another name, or --overwrite (overwrite=True).")

    @classmethod
    def is_input(cls, path: str) -> OutputExistsError:
        return cls(f"{path!r} is both input and output. Hint: give the output another name.")


class InterruptedOutputError(EmbridgeError, FileExistsError):
    """An unfinished output exists, or cannot be continued."""

    @classmethod
    def altered(cls, path: str, fault: str) -> InterruptedOutputError:
        return cls(f"{path!r} was altered since it was written: {fault}. Hint: --overwrite (overwrite=True) starts again.")

    @classmethod
    def not_ours(cls, path: str) -> InterruptedOutputError:
        return cls(f"{path!r} was not left by an unfinished run of embridge, so it is not changed. Hint: move it away.")


class OutputError(EmbridgeError, OSError):
    """An output that cannot be written: its folder is missing or not writable, or the device fails."""


class DiskFullError(OutputError):
    """The disk is too full for the output."""


class VerificationError(EmbridgeError, ValueError):
    """An output does not match its source and map."""


class NoSharedIdsError(EmbridgeError, LookupError):
    """Two collections have no id in common."""


class TooFewAnchorsError(EmbridgeError, ValueError):
    """Fewer anchors than a method, or an evaluation, needs."""

    @classmethod
    def for_method(cls, method: str, required: int, found: int) -> TooFewAnchorsError:
        return cls(f"{method!r} needs at least {required} anchors. Got {found} instead. Hint: re-encode more shared rows.")

    @classmethod
    def held_out(cls, required: int, found: int, shared: int) -> TooFewAnchorsError:
        return cls(
            f"Evaluation needs at least {required} shared rows that the map was not fitted on. Got {found} of {shared:,} instead. "
            "Hint: fit with --test-size 0.2, or evaluate on other rows."
        )


class ParameterError(EmbridgeError, ValueError):
    """An argument outside its range."""

    @classmethod
    def must_be(cls, name: str, expected: str, found: Any) -> ParameterError:
        return cls(f"{name} must be {expected}. Got {found!r} instead.")


class MapError(EmbridgeError, ValueError):
    """A map that does not support an operation."""

    @classmethod
    def not_affine(cls, fact: str) -> MapError:
        return cls(f"The map has kernel features and is not affine: {fact}. Hint: fit with --keep-affine (keep_affine=True).")


class DecoderError(EmbridgeError, ValueError):
    """A decoder that cannot be opened safely, or does not do what it should."""

    @classmethod
    def pickle(cls, path: str, hint: str) -> DecoderError:
        return cls(f"{path!r} is a pickle, which can run any code when it is opened, so it was not opened. Hint: {hint}.")

    @classmethod
    def untrusted(cls, path: str, types: Sequence[str]) -> DecoderError:
        return cls(
            f"{path!r} holds types that are not trusted: {', '.join(types)}. It was not loaded. "
            f"Hint: if you made the file, or know these types, trust them: --trust {types[0]} (trusted=[...])."
        )

    @classmethod
    def fails(cls, what: str, reason: Any) -> DecoderError:
        text = str(reason).strip() or type(reason).__name__
        return cls(f"{what} fails on vectors of its own space: {text.splitlines()[0]}")

    @classmethod
    def not_linear(cls, kind: str) -> DecoderError:
        return cls(
            f"{kind} is not linear from end to end, so it is not a linear head. Hint: save it with eb.save_decoder(..., 'X.skops')."
        )


class DeviceError(EmbridgeError, RuntimeError):
    """A device that does not exist."""


class MissingDependencyError(EmbridgeError, ImportError):
    """An optional package that is not installed."""

    @classmethod
    def of(cls, package: str, purpose: str, extra: str) -> MissingDependencyError:
        return cls(f"{purpose} needs {package}, which is not installed. Hint: pip install 'embridge[{extra}]'.")


class BackendError(EmbridgeError, RuntimeError):
    """A cluster that cannot be reached, cannot run a task, or lost one."""


class FaissIndexError(EmbridgeError, ValueError):
    """A FAISS index that cannot be built, read as vectors, or searched with these options."""

    @classmethod
    def parameters(cls, parameters: str, reason: Any) -> FaissIndexError:
        text = str(reason).strip().splitlines()[-1] if str(reason).strip() else "unknown reason"
        return cls(f"FAISS does not accept the search parameters {parameters!r} on this index: {text}")


class MigrationRefusedError(FaissIndexError):
    """An index that cannot be migrated in the requested mode, or not accurately enough."""


class CatalogError(EmbridgeError, RuntimeError):
    """The catalog cannot be used, or an SQL query failed."""
