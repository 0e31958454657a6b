"""``POST /v1/search``: queries in, hits out, by a strategy that the request chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from embridge.errors import EmbridgeError
from embridge.serving.embedding import checked_encoding
from embridge.serving.encoders import Request as EncodeRequest
from embridge.serving.gate import ROWS
from embridge.serving.maps import Conversion
from embridge.serving.media import JSON, check_count, from_json
from embridge.serving.problems import Problem, answers
from embridge.serving.schemas import SearchAnswer, SearchRequest
from embridge.serving.service import Service
from embridge.serving.targets import BLENDED, FUSED, OLD, OWN, PROJECTED, STRATEGIES, Search, Target
from embridge.serving.translating import parsed_json, service_of
from embridge.types import Hits, Space

router = APIRouter(tags=["search"])
_ERRORS = answers(400, 404, 408, 413, 415, 429, 502, 504)


@dataclass(frozen=True)
class Given:
    """The queries of a request.

    Attributes
    ----------
    vectors, old_vectors : list of list of float, or None
    texts : list of str or None
    """

    vectors: list[list[float]] | None
    old_vectors: list[list[float]] | None
    texts: list[str] | None


@dataclass(frozen=True)
class Chosen:
    """A strategy on a target.

    Attributes
    ----------
    target : Target
    strategy : str
    space : Space
        Of the queries.
    old_space : Space or None
        Of old queries, where the strategy takes them.
    conversion : Conversion or None
        That projects queries.
    """

    target: Target
    strategy: str
    space: Space
    old_space: Space | None
    conversion: Conversion | None


def projection_of(service: Service, target: Target, name: str | None = None) -> Conversion | None:
    """The conversion of queries into the (old) rows of a target, from its new space where it has two."""
    found = service.maps.projection(target.rows_space, name)
    if found is not None and target.old_space is not None and not found.source.same_as(target.space):
        return None
    return found


def default_strategy(service: Service, target: Target) -> str:
    """``fused`` over two spaces, ``projected`` over old rows that a map leads to, else ``own-space``."""
    has_map = _has_map(service, target)
    if target.refusal(FUSED, has_map=has_map) is None:
        return FUSED
    return PROJECTED if is_old(service, target.rows_space) and target.refusal(PROJECTED, has_map=has_map) is None else OWN


def is_old(service: Service, space: Space) -> bool:
    """True for a space that documents are translated from, or queries into."""
    ends = ((m.translation.target, m.translation.source, m.translation.record.role) for m in service.maps)
    return any((target if role == "queries" else source).same_as(space) for target, source, role in ends)


def refusals(service: Service, target: Target) -> dict[str, str]:
    """Strategies that a target does not permit, and why."""
    has_map = _has_map(service, target)
    found = {strategy: target.refusal(strategy, has_map=has_map) for strategy in STRATEGIES}
    return {strategy: reason for strategy, reason in found.items() if reason is not None}


def _has_map(service: Service, target: Target) -> bool:
    try:
        return projection_of(service, target) is not None
    except Problem:  # several are equally good, so a request has to name one
        return True


def choose(service: Service, given: SearchRequest) -> Chosen:
    """The target, the strategy and the map of a request.

    Raises
    ------
    Problem
        They do not fit together; the message says which do.
    """
    target = service.target(given.index)
    refused = refusals(service, target)
    strategy = given.strategy or default_strategy(service, target)
    if given.strategy is None and given.space is not None and given.space != target.space.name and OLD not in refused:
        strategy = OLD if target.old_space is not None and given.space == target.old_space.name else strategy
    elif given.strategy is None and given.space == target.space.name and target.old_space is None:
        strategy = OWN
    if strategy in refused:
        can = ", ".join(s for s in STRATEGIES if s not in refused)
        message = f"The index {target.name!r} cannot be searched by {strategy!r}: {refused[strategy]}. It can by: {can}."
        raise Problem.invalid(message, "strategy", "strategy_unavailable")
    return _chosen(service, target, strategy, given)


def _chosen(service: Service, target: Target, strategy: str, given: SearchRequest) -> Chosen:
    # A rollout has a map of its own for fused searches.
    fuses = strategy == FUSED and given.old_vectors is None and target.kind != "rollout"
    conversion = projection_of(service, target, given.map) if fuses or strategy in (PROJECTED, BLENDED) else None
    unused = {
        "map": given.map is not None and conversion is None,
        "weight": given.weight is not None and strategy not in (BLENDED, FUSED),
        "hubness": given.hubness is not None and strategy != FUSED,
    }
    if wrong := next((name for name, is_wrong in unused.items() if is_wrong), None):
        raise Problem.invalid(f"{wrong} does not go with {strategy!r} over {target.name!r} here. Leave it out.", wrong)
    space = target.query_space(strategy, None if conversion is None else conversion.source)
    if given.space is not None and given.space != space.name:
        message = f"{strategy!r} over {target.name!r} takes queries of {space.name!r}. Got space {given.space[:100]!r} instead."
        raise Problem.invalid(message, "space", "space_mismatch")
    same_width = strategy in (PROJECTED, BLENDED) and not space.same_as(target.rows_space) and space.dim == target.rows_space.dim
    if given.vectors is not None and given.strategy is None and given.space is None and same_width:
        spaces = f"{space.name!r} and {target.rows_space.name!r}"
        message = f"Vectors of {spaces} have one width, so say which they are: space, or strategy."
        raise Problem.invalid(message, "space", "space_needed")
    old_space = target.rows_space if strategy in (BLENDED, FUSED) else None
    return Chosen(target, strategy, space, old_space, conversion)


async def queries_of(service: Service, given: Given, chosen: Chosen) -> tuple[np.ndarray, np.ndarray | None]:
    """The queries of a request, and old queries where the strategy takes them: given, or encoded.

    Raises
    ------
    Problem
    """
    if (given.vectors is None) == (given.texts is None):
        raise Problem.invalid("Give either vectors or texts.", "vectors")
    if given.old_vectors is not None and (chosen.old_space is None or given.texts is not None):
        what = "texts" if given.texts is not None else f"the strategy {chosen.strategy!r}"
        raise Problem.invalid(f"old_vectors do not go with {what}.", "old_vectors")
    if given.texts is None:
        return await service.workers.run(arrays_of, service, given, chosen)
    check_count(len(given.texts), service.options.max_rows, "texts")
    asked = EncodeRequest(given.texts, "query")
    new = await service.encoders.encode(chosen.space.name, chosen.space.dim, asked)
    vectors, old = checked_encoding(new.vectors, chosen.space), None
    if chosen.old_space is not None and (chosen.strategy == BLENDED or chosen.old_space.name in service.encoders):
        space = chosen.old_space
        old = checked_encoding((await service.encoders.encode(space.name, space.dim, asked)).vectors, space)
    return vectors, old


def arrays_of(service: Service, given: Given, chosen: Chosen) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors of a request, checked.

    Raises
    ------
    Problem
    """
    limit = service.options.max_rows
    vectors = from_json(given.vectors or [], chosen.space, limit)
    if given.old_vectors is None:
        if chosen.strategy == BLENDED:
            message = f"'blended' takes the same queries by the model of {chosen.target.rows_space.name!r}, too: old_vectors."
            raise Problem.invalid(message, "old_vectors")
        return vectors, None
    if chosen.old_space is None or len(given.old_vectors) != len(vectors):
        message = f"old_vectors has {len(given.old_vectors):,} rows, and vectors {len(vectors):,}."
        raise Problem.invalid(message, "old_vectors")
    return vectors, from_json(given.old_vectors, chosen.old_space, limit, "old_vectors")


def search_of(chosen: Chosen, queries: tuple[np.ndarray, np.ndarray | None], **options: Any) -> Search:
    """The search of a target; a map projects only where there are no old queries to fuse with."""
    vectors, old = queries
    via = None if chosen.conversion is None or (chosen.strategy == FUSED and old is not None) else chosen.conversion.translation
    return Search(chosen.strategy, vectors, old_queries=old, via=via, **options)


def hits_of(target: Target, search: Search) -> list[list[dict[str, Any]]]:
    """The hits of each query; done in a thread.

    Raises
    ------
    Problem
    """
    try:
        hits: Hits = target.search(search)
    except EmbridgeError as e:
        problem = Problem.of(e)
        if problem.status == 503:
            target.expire()
        raise problem from e
    rows = (hits.row(i) for i in range(len(hits)))
    return [[{"id": one, "score": score} for one, score in zip(*row, strict=True)] for row in rows]


def map_of(conversion: Conversion | None, search: Search) -> dict[str, Any] | None:
    """The map that projected queries, where one did."""
    return None if conversion is None or search.via is None else conversion.facts()["map"]


def json_body(model: str) -> dict[str, Any]:
    """The documentation of a body that the route reads itself."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{model}"}}}}}


@router.post(
    "/v1/search",
    summary="Search an index",
    response_class=Response,
    responses={200: {"model": SearchAnswer}, **_ERRORS},
    openapi_extra=json_body("SearchRequest"),
)
async def search(request: Request) -> Response:
    """Search an index, a collection or a rollout with vectors or texts, by the strategy that the request chooses.

    - `own-space`: queries of the space of the rows (of their new vectors, where they have two).
    - `old-space`: queries of the old space, over old vectors alone.
    - `projected`: queries of another space, projected by a map.
    - `blended`: projected queries, blended with `old_vectors`.
    - `fused`: rows are scored by their old and their new vectors; old queries are `old_vectors`, or projected.
    - `native`: over the rows that are not translated.
    """
    service, body = service_of(request), await request.body()
    given = await service.workers.run(parsed_json, SearchRequest, body, request.headers.get("content-type"))
    chosen = choose(service, given)
    queries = await queries_of(service, Given(given.vectors, given.old_vectors, given.texts), chosen)
    request.scope[ROWS] = len(queries[0])
    options = {"k": given.k, "weight": given.weight, "hubness": given.hubness, "parameters": given.parameters}
    wanted = search_of(chosen, queries, **options)
    hits = await service.workers.run(hits_of, chosen.target, wanted)
    answer = {"index": chosen.target.name, "strategy": chosen.strategy, "space": chosen.space.to_dict()}
    answer |= {"map": map_of(chosen.conversion, wanted), "hits": hits}
    return Response(to_json(answer), media_type=JSON)
