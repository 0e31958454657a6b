"""A shadow of a collection behind an alias: another collection with the same points, whose dense vectors are new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from embridge.errors import CollectionError, ParameterError, n_rows
from embridge.stores.batch import Batch
from embridge.stores.in_place import MigrationNote
from embridge.stores.json_collection import NOTE
from embridge.stores.qdrant.client import models
from embridge.stores.qdrant.collection import DISTANCES, key_of, real_name, vectors_of
from embridge.stores.qdrant.live import POINT, ChosenRows, WholeRows, at, count, dumps, having
from embridge.stores.uri import Location

_WAS_LIVE = f"{NOTE}_was_live"  # in the metadata of a shadow, from its first cutover on
_PAGE, _ID_PAGE = 256, 8192  # points of one request, with and without all that they hold


def names_of(client: Any, location: Location, name: str, into: str | None, known: MigrationNote | None) -> tuple[str, str, str]:
    """The alias, the shadow and the collection that the alias leads to before the cutover.

    Raises
    ------
    ParameterError
        The name is no alias.
    """
    real = known.aside if known is not None else real_name(client, name)
    if real == name:
        raise ParameterError(
            f"{location.uri!r} names a collection, and a shadow comes into use by moving an alias. Hint: create an alias of "
            f"{name!r}, let applications use the alias in place of the collection, and migrate the URI with the alias."
        )
    return name, into or (f"{name}_new" if real != f"{name}_new" else f"{name}_next"), real


def create_shadow(client: Any, note: MigrationNote, info: Any) -> None:
    """Create an empty collection with the settings of another."""
    config, params = info.config, info.config.params
    [(using, old)] = vectors_of(info).items()
    changes = {"size": note.new.dim, "distance": DISTANCES[note.new.metric], "datatype": datatype(note), "hnsw_config": None}
    vector = old.model_copy(update=changes)
    shards = {name: getattr(params, name) for name in ("shard_number", "replication_factor", "write_consistency_factor")}
    client.create_collection(
        note.into,
        vectors_config={using: vector} if using else vector,
        sparse_vectors_config=params.sparse_vectors,
        on_disk_payload=params.on_disk_payload,
        hnsw_config=_as(models.HnswConfigDiff, config.hnsw_config),
        optimizers_config=_as(models.OptimizersConfigDiff, config.optimizer_config),
        wal_config=_as(models.WalConfigDiff, config.wal_config),
        quantization_config=config.quantization_config,
        strict_mode_config=_as(models.StrictModeConfig, config.strict_mode_config),
        metadata=renamed(dict(config.metadata or {}), note) | {key_of(note): note.dumps()},
        **shards,
    )


def _as(kind: Any, held: Any) -> Any:
    """The same settings as another type of the client."""
    known = {} if held is None else held.model_dump(exclude_none=True)
    return kind(**{name: value for name, value in known.items() if name in kind.model_fields}) if known else None


def datatype(note: MigrationNote) -> Any:
    """Of the new vectors, in Qdrant's words; None is float32."""
    return models.Datatype.FLOAT16 if note.dtype == "float16" else None


def renamed(metadata: dict[str, Any], note: MigrationNote) -> dict[str, Any]:
    """The metadata of a collection in which the note of embridge, where there is one, states the new space."""
    if NOTE not in metadata:
        return metadata
    values = json.loads(metadata[NOTE])
    columns = values["columns"]
    if note.mode == "column":
        if columns["vector"] != note.name:
            return metadata
        columns = columns | {"vector": note.into}
    return metadata | {NOTE: json.dumps(values | {"space": note.new.to_dict(), "columns": columns})}


def shadow_rows(client: Any, location: Location, note: MigrationNote, using: str, *, missing: bool) -> WholeRows | None:
    """Points with an old vector, or those of them that the shadow lacks; None where there are none."""
    place, condition = at(location, note.aside), having(using)
    if missing:
        points = list(_lacking(client, note.aside, note.into, condition))
        return ChosenRows(place, note.old, points) if points else None
    rows = count(client, note.aside, condition)
    return WholeRows(place, note.old, None, condition, rows) if rows else None


def _lacking(client: Any, name: str, other: str, condition: Any = None) -> Iterator[Any]:
    """Ids of points of one collection that another has not."""
    for points in _pages(client, name, _ID_PAGE, condition, with_payload=False):
        ids = [point.id for point in points]
        found = {record.id for record in client.retrieve(other, ids, with_payload=False)}
        yield from (i for i in ids if i not in found)


def _pages(client: Any, name: str, rows: int, condition: Any, **options: Any) -> Iterator[list[Any]]:
    offset: Any = None
    while True:
        points, offset = client.scroll(name, scroll_filter=condition, limit=rows, offset=offset, **options)
        if points:
            yield points
        if offset is None:
            return


def shadows_of(batch: Batch, points: list[Any], using: str) -> list[Any]:
    """The points of the shadow for rows of `WholeRows` with new vectors."""
    made = []
    for point, vector, text in zip(points, batch.vectors.tolist(), batch.payload.column(POINT.name).to_pylist(), strict=True):
        rest = json.loads(text)
        vectors = rest["vectors"] | {using: vector} if using or rest["vectors"] else vector
        made.append(models.PointStruct(id=point, vector=vectors, payload=rest["payload"]))
    return made


def complete_shadow(client: Any, note: MigrationNote, info: Any, using: str) -> list[str]:
    """Copy what has no dense vector, and the indexes of payload fields; remove points whose originals are gone."""
    for points in _pages(
        client, note.aside, _PAGE, models.Filter(must_not=having(using).must), with_payload=True, with_vectors=True
    ):
        copies = []
        for record in points:
            rest = json.loads(dumps(record, using))
            copies.append(models.PointStruct(id=record.id, vector=rest["vectors"], payload=rest["payload"]))
        client.upsert(note.into, copies, wait=True)
    fields = info.payload_schema or {}
    for field, index in fields.items():
        client.create_payload_index(note.into, field, field_schema=index.params or index.data_type, wait=True)
    remarks = prune(client, note)
    return (
        [*remarks, f"Indexes of the payload fields {', '.join(map(repr, fields))} are built as in {note.aside!r}."]
        if fields
        else remarks
    )


def prune(client: Any, note: MigrationNote) -> list[str]:
    """Remove points of the shadow whose originals are gone; once it was in use, they may be new ones, and stay."""
    gone = list(_lacking(client, note.into, note.aside))
    if gone and _WAS_LIVE in (client.get_collection(note.into).config.metadata or {}):
        return [
            f"{n_rows(len(gone))} of {note.into!r} are not in {note.aside!r}: they were written after a cutover, or deleted since. "
            "They stay."
        ]
    for start in range(0, len(gone), _ID_PAGE):
        client.delete(note.into, points_selector=gone[start : start + _ID_PAGE], wait=True)
    return []


def move_alias(client: Any, note: MigrationNote) -> list[str]:
    """Let the alias lead to the side that is in use at the stage of a note, in one request."""
    target, remarks = note.into if note.is_live else note.aside, []
    if real_name(client, note.name) != target:
        if note.is_live:
            remarks = prune(client, note)
            client.update_collection(note.into, metadata={_WAS_LIVE: "true"})
        leave = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=note.name))
        lead = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=target, alias_name=note.name))
        client.update_collection_aliases([leave, lead])
    others = aliases_of(client, note.aside if note.is_live else note.into)
    remarks.append(f"The alias {note.name!r} leads to {target!r}, which alone takes what is written from now on.")
    return remarks + ([f"These aliases still lead to the other: {', '.join(map(repr, others))}."] if others else [])


def drop_collection(client: Any, name: str) -> None:
    """Remove a collection that no alias leads to.

    Raises
    ------
    CollectionError
    """
    if others := aliases_of(client, name):
        raise CollectionError(
            f"The aliases {', '.join(map(repr, others))} lead to {name!r}, so it is not removed. Hint: move them first."
        )
    client.delete_collection(name)


def aliases_of(client: Any, name: str) -> list[str]:
    """Aliases that lead to a collection."""
    return sorted(held.alias_name for held in client.get_aliases().aliases if held.collection_name == name)
