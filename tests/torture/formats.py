"""Every format that embridge reads: samples of it, and how they are damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.torture import mend, mutate, readers
from tests.torture.mutate import GENERIC, Damage
from tests.torture.processes import small_steps
from tests.torture.world import OLD_DIM, files_of, quiet, vectors_of

Files = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sound files, and which of them are damaged; the first one is what is read."""

    name: str
    files: Files
    damaged: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes
    ----------
    name : str
    samples : callable
        Samples, out of the folder of inputs.
    read : callable
        Given (the first file of a damaged sample, the folder of inputs); what it returns must be what the undamaged sample
        gives, where `equal`.
    damages : tuple
        Ways to damage it, one of them by chance.
    weight : float
        Its share of all mutations.
    equal : bool
        A damaged file that is accepted must mean what it meant: the format has checksums.
    mend : callable, optional
        Makes the checksums of half of the damaged files right again; those may mean something else.
    refused : tuple of str
        Undamaged samples that are refused for what they hold, such as NaN.
    """

    name: str
    samples: Callable[[Path], list[Sample]]
    read: Callable[[Path, Path], Any]
    damages: tuple[Damage, ...]
    weight: float
    equal: bool = False
    mend: Callable[[Files], Files] | None = None
    refused: tuple[str, ...] = ()


def _alone(*names: str) -> Callable[[Path], list[Sample]]:
    """Each of these inputs by itself."""
    return lambda world: [Sample(name, {Path(name).name: (world / name).read_bytes()}, (Path(name).name,)) for name in names]


def _indexes(damaged: str) -> Callable[[Path], list[Sample]]:
    """Indexes with their sidecars, of which the one with this ending is damaged."""

    def samples(world: Path) -> list[Sample]:
        found = []
        for path in sorted([*world.glob("*.faiss"), *world.glob("bare/*.faiss")]):
            files = {p.name: p.read_bytes() for p in sorted(path.parent.glob(f"{path.name}*"))}
            if path.name + damaged in files:
                found.append(Sample(path.name, files, (path.name + damaged,)))
        return found

    return samples


def _on_disk(world: Path) -> list[Sample]:
    """An index whose lists lie in a file of their own, which it names."""
    import faiss

    x, _ = vectors_of(300)
    with _scratch(world, "on-disk") as folder, contextlib.chdir(folder.parent), quiet():
        index = faiss.index_factory(OLD_DIM, "IVF6,Flat")
        index.train(x)
        lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, "sample/lists.ivfdata")
        index.replace_invlists(lists, False)
        index.add(x)
        faiss.write_index(index, "sample/i.faiss")
        del index, lists
        files = files_of(folder)
    return [Sample("on-disk", files, tuple(files))]


def _declared(damaged: tuple[int, ...]) -> Callable[[Path], list[Sample]]:
    """Decoders with their sidecars: 0 is the program, 1 the sidecar."""

    def samples(world: Path) -> list[Sample]:
        found = []
        for name in ("model.skops", "net.pt2", "model.onnx"):
            files = {n: (world / n).read_bytes() for n in (name, f"{name}.json")}
            found.append(Sample(name, files, tuple(n for i, n in enumerate(files) if i in damaged)))
        return found

    return samples


def _stopped(rows: int) -> Callable[[int, int], None]:
    def progress(done: int, _: int) -> None:
        if done >= rows:
            raise KeyboardInterrupt

    return progress


@contextlib.contextmanager
def _scratch(world: Path, name: str) -> Iterator[Path]:
    """A folder in which unfinished outputs are made."""
    folder = world.parent / "scratch" / name / "sample"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    small_steps()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _unfinished(source: str, rows: int) -> Callable[[Path], list[Sample]]:
    """A conversion that was stopped in its midst; each of its files may be damaged."""

    def samples(world: Path) -> list[Sample]:
        with _scratch(world, source) as folder:
            with contextlib.suppress(KeyboardInterrupt):
                readers.convert_small(folder / "-", world, source, progress=_stopped(rows))
            files = files_of(folder)
        if len(files) < 2:
            raise RuntimeError(f"nothing is left of a conversion of {source} that was stopped: {', '.join(files)}")
        return [Sample(source, files, tuple(files))]

    return samples


def _finished(world: Path) -> list[Sample]:
    with _scratch(world, "finished") as folder:
        readers.convert_small(folder / "-", world, "shards")
        files = files_of(folder)
    return [Sample("folder", files, tuple(files))]


def _checked(world: Path) -> list[Sample]:
    with _scratch(world, "checked") as folder:
        readers.convert_small(folder / "-", world, "holes.parquet")
        files = files_of(folder)
    return [Sample("converted", dict(sorted(files.items(), key=lambda f: f[0] != "o.parquet")), tuple(files))]


def _parts(world: Path) -> list[Sample]:
    with _scratch(world, "parts") as folder:
        with contextlib.suppress(KeyboardInterrupt):
            readers.encode_rest(folder / "-", world, progress=_stopped(10))
        files = files_of(folder)
    return [Sample("parts", files, tuple(files))]


_COLLECTIONS = ("small.parquet", "numbers.parquet", "holes.parquet")
_MAPS = ("map.safetensors", "rotation.safetensors", "isometry.safetensors")
_LINES = (*GENERIC, *[mutate.json_lines] * 9)
_TABLE = (*GENERIC, *[mutate.table] * 9)
_JSON = (*GENERIC, *[mutate.json_text] * 18)
_TENSORS = (*GENERIC, *[mutate.tensors] * 9)
_ZIP = (*GENERIC, *[mutate.members] * 12)
FORMATS = (
    Format("parquet", _alone(*_COLLECTIONS, "translated.parquet"), readers.read_collection, _TABLE, 14, refused=("holes.parquet",)),
    Format("source", _alone(*_COLLECTIONS), readers.convert_collection, _TABLE, 5),
    Format("qrels", _alone("qrels.parquet"), readers.read_qrels, _TABLE, 4),
    Format("labels", _alone("labels.parquet"), readers.read_labels, _TABLE, 4),
    Format("targets", _alone("labels.parquet"), readers.read_targets, _TABLE, 2),
    Format("provenance", _alone("merged.parquet"), readers.merge_again, _TABLE, 1),
    Format("batch", _alone("small.parquet"), readers.translate_table, _TABLE, 3),
    Format("ids", _alone("ids.parquet"), readers.read_ids, _TABLE, 3),
    Format("texts", _alone("texts.parquet"), readers.read_texts, _TABLE, 5),
    Format("faiss", _indexes(""), readers.search_index, GENERIC, 24, mend=mend.binding),
    Format("faiss-json", _indexes(".json"), readers.search_index, _JSON, 6),
    Format("faiss-ids", _indexes(".ids.parquet"), readers.search_index, _TABLE, 5, mend=mend.binding),
    Format("faiss-disk", _on_disk, readers.search_index, GENERIC, 3),
    Format("map", _alone(*_MAPS), readers.read_map, _TENSORS, 8, equal=True, mend=mend.tensors),
    Format("kernel", _alone("kernel.safetensors"), readers.read_map, _TENSORS, 4, equal=True, mend=mend.tensors),
    Format("moments", _alone("all.moments.safetensors"), readers.read_moments, _TENSORS, 5, equal=True, mend=mend.tensors),
    Format("head", _alone("head.safetensors"), readers.read_head, _TENSORS, 6, equal=True, mend=mend.tensors),
    Format("skops", _alone("bare-model.skops"), readers.read_decoder, _ZIP, 5),
    Format("onnx", _alone("bare-model.onnx"), readers.read_decoder, (*GENERIC, *[mutate.program] * 9), 6),
    Format("pt2", _alone("bare-net.pt2"), readers.read_decoder, _ZIP, 2),
    Format("declaration", _declared((1,)), readers.read_decoder, _JSON, 4),
    Format("journal", _unfinished("holes.parquet", 90), readers.resume_file, _LINES, 8, equal=True, mend=mend.journal),
    Format("folder", _unfinished("shards", 90), readers.resume_folder, _LINES, 3, equal=True, mend=mend.journal),
    Format("manifest", _finished, readers.replace_folder, _JSON, 2, equal=True),
    Format("bad-list", _checked, readers.verify_output, _TABLE, 3),
    Format("catalog", _alone("catalog.duckdb"), readers.use_catalog, GENERIC, 4),
    Format("parts", _parts, readers.encode_rest, (*GENERIC, *[mutate.json_text] * 9), 0.3, equal=True),
)
BY_NAME = {one.name: one for one in FORMATS}
