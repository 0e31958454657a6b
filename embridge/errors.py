"""Every error that embridge raises on purpose.

Each class mixes in the builtin that a caller would catch without knowing embridge. Messages are composed by classmethods, so
that a fact is worded in one place: the fact, its numbers, then a hint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embridge.types import Space


class EmbridgeError(Exception):
    """Base of every error of the library."""


def _some(items: Sequence[Any], limit: int = 5) -> str:
    shown = ", ".join(repr(item) for item in list(items)[:limit])
    return shown + (f", ... ({len(items):,} in all)" if len(items) > limit else "")


def _rows(n: int) -> str:
    return f"{n:,} row" + ("" if n == 1 else "s")


class SpaceMismatchError(EmbridgeError, ValueError):
    """Vectors of one space were given where another space is expected."""

    @classmethod
    def between(cls, what: str, expected: Space, where: str, found: Space) -> SpaceMismatchError:
        if expected.name == found.name:
            hint = "Hint: is it the right file, and in the right place?"
        elif what.startswith("The map"):
            hint = f"Hint: fit a map from {found.name!r}."
        else:
            hint = f"Hint: translate them first with a map from {found.name!r} to {expected.name!r}."
        return cls(
            f"{what} expects {expected.dim}-dimensional vectors of {expected.name!r}, but {where} holds "
            f"{found.dim}-dimensional vectors of {found.name!r}. {hint}"
        )

    @classmethod
    def decoder(cls, what: str, expected: Space, where: str, found: Space) -> SpaceMismatchError:
        return cls(
            f"{what} takes {expected.dim}-dimensional vectors of {expected.name!r}, but {where} holds {found.dim}-dimensional "
            f"vectors of {found.name!r}. Hint: decode through a map from {found.name!r} to {expected.name!r} (--via, via=)."
        )

    @classmethod
    def width(cls, what: str, expected: int, found: int) -> SpaceMismatchError:
        return cls(f"{what} expects {expected}-dimensional vectors. Got {found} dimensions instead.")

    @classmethod
    def contradiction(cls, where: str, field: str, declared: Any, found: Any) -> SpaceMismatchError:
        return cls(
            f"{where} was declared as {field} {declared!r}, but its own metadata says {field} {found!r}. "
            "Hint: leave the declaration out; the file knows its space."
        )

    @classmethod
    def mixed(cls, where: str, one: str, space: Space, other: str, found: Space) -> SpaceMismatchError:
        return cls(
            f"{where} mixes spaces: {one} holds {space.dim}-dimensional vectors of {space.name!r} ({space.metric}), "
            f"{other} {found.dim}-dimensional vectors of {found.name!r} ({found.metric}). Hint: open them one by one."
        )

    @classmethod
    def unrelated(cls, via: tuple[str, str], queries: str, index: str) -> SpaceMismatchError:
        return cls(
            f"The map translates {via[0]!r} -> {via[1]!r}, but the queries are of {queries!r} and the index holds {index!r}. "
            f"Hint: give a map between {queries!r} and {index!r}, in either direction."
        )

    @classmethod
    def maps(cls, one: tuple[Space, Space], other: tuple[Space, Space]) -> SpaceMismatchError:
        return cls(
            f"The map translates {one[0].name!r} ({one[0].dim}) -> {one[1].name!r} ({one[1].dim}), the one to compare it with "
            f"{other[0].name!r} ({other[0].dim}) -> {other[1].name!r} ({other[1].dim}). "
            "Hint: compare maps between the same two spaces."
        )

    @classmethod
    def same_model(cls, name: str) -> SpaceMismatchError:
        return cls(
            f"Source and target are both of space {name!r}; there is nothing to translate. "
            "Hint: name the two encoders apart with --source-space and --target-space."
        )


class UndeclaredSpaceError(EmbridgeError, ValueError):
    """A file does not say which space its vectors are of, and neither did the caller."""

    @classmethod
    def of(cls, where: str) -> UndeclaredSpaceError:
        return cls(
            f"{where} does not say which encoder made its vectors. Hint: name the space with --space NAME "
            "(--source-space, --target-space where there are two), or eb.open(..., space=NAME)."
        )

    @classmethod
    def of_decoder(cls, where: str) -> UndeclaredSpaceError:
        return cls(
            f"The decoder {where} does not say which space it takes. Hint: `embridge decoder register {where} --space NAME`, or "
            "--decoder-space NAME, or eb.open_decoder(..., space=NAME)."
        )


class BadVectorsError(EmbridgeError, ValueError):
    """Vectors that cannot be used: NaN or infinite values, zero vectors under cosine, ragged or of a wrong width."""

    @classmethod
    def rows(cls, where: str, reason: str, ids: Sequence[Any]) -> BadVectorsError:
        return cls(f"{where} has {_rows(len(ids))} with {reason}: ids {_some(ids)}. Hint: remove or re-encode them.")

    @classmethod
    def lengths(cls, where: str, lengths: Any, ids: Sequence[Any]) -> BadVectorsError:
        return cls(
            f"The space of {where} says that every vector has unit length (normalized), but {_rows(len(ids))} of one batch have "
            f"lengths from {min(lengths):.4g} to {max(lengths):.4g}: ids {_some(ids)}. Hint: scale them to unit length, or "
            "correct what says so: the metadata 'embridge.space' of the file, or the Space(normalized=True) given."
        )

    @classmethod
    def none_left(cls, where: str, count: int) -> BadVectorsError:
        return cls(f"{where} has {_rows(count)}, and none of them can be translated.")

    @classmethod
    def missing(cls, where: str, count: int, row: int) -> BadVectorsError:
        return cls(f"{where} has {_rows(count)} without a vector (null), the first at row {row:,}. Hint: re-encode them.")

    @classmethod
    def ragged(cls, where: str, expected: int, found: int, row: int) -> BadVectorsError:
        return cls(f"{where} is ragged: vectors are {expected}-dimensional, but row {row:,} has {found} values.")

    @classmethod
    def shape(cls, where: str, shape: tuple[int, ...]) -> BadVectorsError:
        return cls(f"{where} must be vectors of shape (n, dim). Got shape {shape} instead.")

    @classmethod
    def dtype(cls, where: str, found: Any) -> BadVectorsError:
        return cls(f"{where} must hold float16, float32 or float64 values. Got {found} instead.")


class BadIdsError(EmbridgeError, ValueError):
    """Ids that are null, repeated, or of a kind that is not supported."""

    @classmethod
    def null(cls, where: str, count: int) -> BadIdsError:
        return cls(f"{where} has {_rows(count)} without an id (null). Every row needs an id.")

    @classmethod
    def duplicate(cls, where: str, ids: Sequence[Any]) -> BadIdsError:
        return cls(f"{where} holds ids more than once: {_some(ids)}. Hint: ids must be unique; remove the repeated rows.")

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
        return cls(f"{where} names ids that are not there: {_some(ids)}.")


class CollectionError(EmbridgeError, ValueError):
    """A collection that cannot be read as one: no such column, no rows, nothing found at the path."""

    @classmethod
    def no_column(cls, where: str, column: str, columns: Sequence[str], option: str) -> CollectionError:
        return cls(f"{where} has no column {column!r}. Columns: {', '.join(columns)}. Hint: name it with {option}.")

    @classmethod
    def empty(cls, where: str) -> CollectionError:
        return cls(f"{where} holds no rows.")

    @classmethod
    def unknown_kind(cls, where: str) -> CollectionError:
        return cls(f"{where} is neither Parquet (a file, a folder, a glob) nor a FAISS index (.faiss, .index).")

    @classmethod
    def reserved_column(cls, where: str, column: str) -> CollectionError:
        return cls(f"{where} already has a column {column!r}, which the output needs. Hint: rename it.")

    @classmethod
    def calibrated_apart(cls, where: str, one: str, other: str) -> CollectionError:
        return cls(
            f"{where} mixes files whose native and translated rows were not calibrated together: {one} and {other}. "
            "Hint: open them one by one."
        )

    @classmethod
    def not_native(cls, where: str, reason: str) -> CollectionError:
        return cls(
            f"{where} cannot be the native side of a merge: {reason}. Hint: the native rows come first, the translated second."
        )

    @classmethod
    def columns_differ(cls, where: str, reason: Any) -> CollectionError:
        return cls(f"Columns of the files in {where} do not go together: {str(reason).splitlines()[0]}")


class MissingFileError(EmbridgeError, FileNotFoundError):
    """Nothing is there."""

    @classmethod
    def at(cls, path: str) -> MissingFileError:
        return cls(f"There is no file or folder at {path!r}.")


class UnreadableFileError(EmbridgeError, OSError):
    """A file that is truncated, damaged or of another kind than its name says."""

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
        return cls(f"{where} changed while it was read: {how}. Hint: run again when nothing writes there any more.")


class OutputExistsError(EmbridgeError, FileExistsError):
    """The output is there already."""

    @classmethod
    def at(cls, path: str) -> OutputExistsError:
        return cls(f"{path!r} exists already. Hint: give another name, or --overwrite (overwrite=True).")

    @classmethod
    def twice(cls, path: str) -> OutputExistsError:
        return cls(f"{path!r} is the name of two outputs. Hint: give each its own.")

    @classmethod
    def is_folder(cls, path: str) -> OutputExistsError:
        return cls(f"{path!r} is a folder, and the output is a file. Hint: give the name of a file.")

    @classmethod
    def is_input(cls, path: str) -> OutputExistsError:
        return cls(f"{path!r} is both input and output. Hint: give the output another name.")


class InterruptedOutputError(EmbridgeError, FileExistsError):
    """An unfinished output is in the way, or cannot be gone on with."""

    @classmethod
    def unfinished(cls, path: str, rows: int) -> InterruptedOutputError:
        return cls(
            f"An interrupted run left {path!r} unfinished ({_rows(rows)} of the source done). "
            "Hint: --resume goes on with it, --overwrite starts anew."
        )

    @classmethod
    def unfinished_folder(cls, path: str) -> InterruptedOutputError:
        return cls(f"{path!r} is there already. Hint: --resume goes on with it if a conversion left it, --overwrite replaces it.")

    @classmethod
    def differs(cls, path: str, what: Sequence[str]) -> InterruptedOutputError:
        return cls(
            f"The unfinished {path!r} was begun with other inputs: {', '.join(what)} differ. "
            "Hint: repeat that run to finish it, or --overwrite to start anew."
        )

    @classmethod
    def busy(cls, path: str) -> InterruptedOutputError:
        return cls(f"Another process is writing {path!r}. Hint: wait for it, or give another output.")

    @classmethod
    def altered(cls, path: str, fault: str) -> InterruptedOutputError:
        return cls(f"{path!r} was altered since it was written: {fault}. Hint: --overwrite (overwrite=True) starts anew.")

    @classmethod
    def not_ours(cls, path: str) -> InterruptedOutputError:
        return cls(f"{path!r} is not what an unfinished run of embridge leaves, so it is not touched. Hint: move it away.")


class OutputError(EmbridgeError, OSError):
    """An output that cannot be written: its folder is gone, may not be written, or the device fails."""


class DiskFullError(OutputError):
    """There is no room for the output."""

    @classmethod
    def before(cls, path: str, needed: int, free: int) -> DiskFullError:
        return cls(
            f"{path!r} needs about {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free there. "
            "Hint: free some, write elsewhere, or halve it with --dtype float16."
        )

    @classmethod
    def during(cls, path: str, rows: int) -> DiskFullError:
        return cls(f"The disk of {path!r} is full; {_rows(rows)} are done and kept. Hint: free some and run again with --resume.")


class VerificationError(EmbridgeError, ValueError):
    """An output is not what its source and map make."""

    @classmethod
    def of(cls, path: str, what: str) -> VerificationError:
        return cls(f"{path!r} is not what it should be: {what}")


class NoSharedIdsError(EmbridgeError, LookupError):
    """Two collections have no id in common."""

    @classmethod
    def between(cls, source: str, source_ids: Sequence[Any], target: str, target_ids: Sequence[Any]) -> NoSharedIdsError:
        return cls(
            f"{source} and {target} share no id. First ids: {_some(source_ids, 2)} and {_some(target_ids, 2)}. "
            "Hint: check --id-column on both sides."
        )


class TooFewAnchorsError(EmbridgeError, ValueError):
    """Fewer anchors than a method, or an evaluation, needs."""

    @classmethod
    def for_method(cls, method: str, needed: int, found: int) -> TooFewAnchorsError:
        return cls(f"{method!r} needs at least {needed} anchors. Got {found} instead. Hint: re-encode more shared rows.")

    @classmethod
    def held_out(cls, needed: int, found: int, shared: int) -> TooFewAnchorsError:
        return cls(
            f"Evaluation needs at least {needed} shared rows that the map was not fitted on. Got {found} of {shared:,} instead. "
            "Hint: fit with --test-size 0.2, or evaluate on other rows."
        )

    @classmethod
    def planned(cls, needed: int, anchors: int, shared: int) -> TooFewAnchorsError:
        return cls(
            f"A plan needs at least {needed} shared rows beside its anchors. Of {shared:,} there are {anchors:,} anchors. "
            "Hint: fewer --anchors (anchors=), a smaller -k, or more rows by both models."
        )

    @classmethod
    def calibration(cls, needed: int, found: int, given: int) -> TooFewAnchorsError:
        return cls(
            f"A confidence is calibrated on at least {needed} rows that the map was not fitted on. Got {found} of {given:,} "
            "instead. Hint: hold out more rows (--test-size), or re-encode more shared rows."
        )


class ParameterError(EmbridgeError, ValueError):
    """An argument outside its range."""

    @classmethod
    def must_be(cls, name: str, expected: str, found: Any) -> ParameterError:
        return cls(f"{name} must be {expected}. Got {found!r} instead.")

    @classmethod
    def no_labels(cls, queries: int, labels: int) -> ParameterError:
        return cls(
            f"None of the {queries:,} queries has a label: neither they nor their relevant rows are among the {labels:,} "
            "labelled ids. "
            "Hint: check --id-column of the labels, and whether their ids are strings or integers."
        )

    @classmethod
    def no_judgements(cls, queries: int, judged: int) -> ParameterError:
        return cls(
            f"None of the {queries:,} queries is among the {judged:,} that the judgements (qrels) are of. "
            "Hint: check whether both have their ids as strings or as integers."
        )

    @classmethod
    def not_normalised(cls, space: str) -> ParameterError:
        return cls(
            f"L2 scaling needs rows of unit length, and space {space!r} is not normalised. "
            "Hint: fit on anchors.unit(), and give the map unit rows."
        )

    @classmethod
    def one_way(cls, path: str) -> ParameterError:
        return cls(
            f"The moments in {path!r} hold only the diagonal of Syy, which is enough for one way and not for the way back. "
            "Hint: `embridge fit --moments FILE --reverse-output MAP` on all anchors keeps them in full."
        )

    @classmethod
    def shared_rows(cls, count: int) -> ParameterError:
        return cls(
            f"{_rows(count)} of the test set {'is' if count == 1 else 'are'} in the training set too, which would flatter every "
            "method. Hint: take both from one Anchors.split()."
        )


class MapError(EmbridgeError, ValueError):
    """A map that cannot do what is asked of it."""

    @classmethod
    def not_isometry(cls) -> MapError:
        return cls(
            "Under L2, queries can be pulled back through an isometry only, and this map is none. "
            "Hint: fit a map from the space of the queries to the space of the index."
        )

    @classmethod
    def not_affine(cls, fact: str) -> MapError:
        return cls(f"The map has kernel features and is not affine: {fact}. Hint: fit with --keep-affine (keep_affine=True).")

    @classmethod
    def features(cls, gamma: float) -> MapError:
        return cls(f"Kernel features need a finite gamma above 0 (got {gamma!r}), and an affine part without a confidence.")

    @classmethod
    def no_confidence(cls) -> MapError:
        return cls(
            "The map has no confidence, so it cannot foretell errors. Hint: fit it with more held-out rows "
            "(embridge fit --test-size 0.2), or eb.calibrate(translation, anchors, held_out)."
        )

    @classmethod
    def other_confidence(cls) -> MapError:
        return cls("The confidence is of a map with other coefficients. Hint: calibrate this map anew, or leave it out.")

    @classmethod
    def chain(cls, first: Space, second: Space) -> MapError:
        return cls(f"A map into {first.name!r} ({first.dim}) cannot be followed by a map from {second.name!r} ({second.dim}).")

    @classmethod
    def folded_twice(cls, space: Space) -> MapError:
        return cls(
            f"The head was folded with a map into a normalised space before, and {space.name!r} is normalised too: scaling to unit "
            "length twice is no single matrix. Hint: translate first, then decode."
        )


class DecoderError(EmbridgeError, ValueError):
    """A decoder that cannot be opened safely, or does not do what it should."""

    @classmethod
    def unknown_format(cls, path: str, formats: Sequence[str]) -> DecoderError:
        return cls(f"{path!r} is no decoder that is known. Formats: {', '.join(formats)}.")

    @classmethod
    def pickle(cls, path: str, hint: str) -> DecoderError:
        return cls(f"{path!r} is a pickle, which can run any code when it is opened, so it was not opened. Hint: {hint}.")

    @classmethod
    def untrusted(cls, path: str, types: Sequence[str]) -> DecoderError:
        return cls(
            f"{path!r} holds types that are not trusted: {', '.join(types)}. It was not loaded. "
            f"Hint: if you made the file, or know these types, trust them by name: --trust {types[0]} (trusted=[...])."
        )

    @classmethod
    def unsafe(cls, path: str, what: str) -> DecoderError:
        return cls(
            f"{path!r} holds {what}, which could run code when it is opened, so it was not opened. "
            "Hint: export the model again with torch.export.save, from plain tensors and ATen operators."
        )

    @classmethod
    def shape(cls, what: str, rows: int, found: Any) -> DecoderError:
        return cls(
            f"{what} must give numbers, one row for each of {_rows(rows)}. Got {found.dtype} of shape {found.shape} instead."
        )

    @classmethod
    def fails(cls, what: str, reason: Any) -> DecoderError:
        text = str(reason).strip() or type(reason).__name__
        return cls(f"{what} fails on vectors of its own space: {text.splitlines()[0]}")

    @classmethod
    def not_linear(cls, kind: str) -> DecoderError:
        return cls(
            f"{kind} is not linear from end to end, so it is no linear head. Hint: save it with eb.save_decoder(..., 'X.skops')."
        )

    @classmethod
    def changed(cls, path: str) -> DecoderError:
        return cls(
            f"{path!r} is not the file that was registered. Hint: register it again with `embridge decoder register --overwrite`."
        )


class DeviceError(EmbridgeError, RuntimeError):
    """A device that is not there."""

    @classmethod
    def unavailable(cls, device: str, available: Sequence[str]) -> DeviceError:
        return cls(f"Device {device!r} is not available here. Available: {', '.join(available)}.")


class MissingDependencyError(EmbridgeError, ImportError):
    """An optional package that is not installed."""

    @classmethod
    def of(cls, package: str, purpose: str, extra: str) -> MissingDependencyError:
        return cls(f"{purpose} needs {package}, which is not installed. Hint: pip install 'embridge[{extra}]'.")


class FaissIndexError(EmbridgeError, ValueError):
    """A FAISS index that cannot be built, read as vectors or searched as asked."""

    @classmethod
    def factory(cls, factory: str, reason: Any) -> FaissIndexError:
        text = str(reason).strip().splitlines()[-1] if str(reason).strip() else "unknown reason"
        return cls(f"FAISS cannot build {factory!r}: {text}")

    @classmethod
    def no_vectors(cls, where: str, kind: str) -> FaissIndexError:
        return cls(f"{where} is a FAISS {kind}, whose vectors cannot be read back.")

    @classmethod
    def sidecar(cls, where: str, ids: int, vectors: int) -> FaissIndexError:
        return cls(f"The id sidecar of {where} holds {ids:,} ids, but the index holds {vectors:,} vectors.")

    @classmethod
    def parameters(cls, parameters: str, reason: Any) -> FaissIndexError:
        text = str(reason).strip().splitlines()[-1] if str(reason).strip() else "unknown reason"
        return cls(f"FAISS does not take the search parameters {parameters!r} on this index: {text}")

    @classmethod
    def not_described(cls, kind: str) -> FaissIndexError:
        return cls(f"No factory string builds a FAISS {kind}, so it cannot be built anew. Hint: --mode wrap.")

    @classmethod
    def bias_under_l2(cls, where: str) -> FaissIndexError:
        return cls(f"{where} is measured by L2; a hubness bias needs cosine or inner product. Hint: leave --hubness out.")

    @classmethod
    def calibrated(cls, path: str) -> FaissIndexError:
        return cls(
            f"{path!r} holds native and translated rows whose scores were calibrated in its own space, which does not carry over. "
            "Hint: convert the collection it was made of, and index that."
        )

    @classmethod
    def no_additions(cls, where: str, reason: str) -> FaissIndexError:
        return cls(f"{where} takes no new vectors: {reason}. Hint: add them to the index that it was made of, or rebuild it.")

    @classmethod
    def cannot_be_verified(cls) -> FaissIndexError:
        return cls("Neither can the vectors of the index be read back nor queries pulled back to it, so nothing can be verified.")


class MigrationRefusedError(FaissIndexError):
    """An index that cannot be moved as asked, or not well enough."""

    @classmethod
    def of(cls, path: str, mode: str, reasons: Sequence[str]) -> MigrationRefusedError:
        hint = "Hint: --mode auto tries every way." if mode != "auto" else "Hint: convert the collection and index the conversion."
        if any("are wanted" in reason for reason in reasons):
            hint = "Hint: another map, or a lower --min-recall."
        return cls(f"{path!r} is not migrated. {'; '.join(reasons)}. {hint}")


class CatalogError(EmbridgeError, RuntimeError):
    """The catalog cannot be used, or a query on it failed."""

    @classmethod
    def locked(cls, path: str, holder: str, seconds: float) -> CatalogError:
        return cls(
            f"The catalog {path!r} is held by another process ({holder}); waited {seconds:.0f} s. "
            "Hint: end it, or use --no-catalog or another --catalog."
        )
