"""``POST /v1/compare``: all strategies side by side; ``POST /v1/queries``: the log of queries for a rollout."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from embridge.serving.embedding import checked_encoding
from embridge.serving.encoders import Request as EncodeRequest
from embridge.serving.gate import ROWS
from embridge.serving.media import JSON
from embridge.serving.problems import Problem, answers
from embridge.serving.query_log import logged_queries
from embridge.serving.schemas import CompareAnswer, CompareRequest, LogAnswer, LoggedAnswer, LogRequest, SearchRequest
from embridge.serving.searching import (
    Chosen,
    Given,
    arrays_of,
    choose,
    hits_of,
    is_old,
    json_body,
    map_of,
    queries_of,
    refusals,
    search_of,
)
from embridge.serving.service import Service
from embridge.serving.targets import BLENDED, OLD, OWN, STRATEGIES, Target
from embridge.serving.translating import parsed_json, service_of

router = APIRouter(tags=["search"])
_LISTED = 100  # logged queries


@router.post(
    "/v1/compare",
    summary="Compare strategies on one query",
    response_class=Response,
    responses={200: {"model": CompareAnswer}, **answers(400, 404, 408, 413, 415, 429, 502, 504)},
    openapi_extra=json_body("CompareRequest"),
)
async def compare(request: Request) -> Response:
    """Search everything that is served with one query, by every strategy that it permits, side by side.

    `vectors` is the query by the new model, `old_vectors` the same by the old one; one of them is enough. A strategy whose query is
    missing has the reason in place of hits.
    """
    service, body = service_of(request), await request.body()
    given = await service.workers.run(parsed_json, CompareRequest, body, request.headers.get("content-type"))
    parts = (given.vectors, given.old_vectors, given.texts)
    has_vectors = given.vectors is not None or given.old_vectors is not None
    if [given.texts is not None, given.logged is not None, has_vectors].count(True) != 1:
        ways = "as text (texts), a logged one (logged), or by the new model (vectors), the old one (old_vectors) or both"
        raise Problem.invalid(f"Give one query: {ways}.")
    if any(part is not None and len(part) != 1 for part in parts):
        raise Problem.invalid("Strategies are compared on one query at a time.", code="too_many_rows")
    request.scope[ROWS] = 1
    whole = Given(*parts) if given.logged is None else await service.workers.run(_logged, service, given.logged)
    encoded = {} if given.texts is None else await _encoded(service, given.texts)
    permitted = [(t, s) for t in service.targets.values() for s in STRATEGIES if s not in refusals(service, t)]
    columns = [await service.workers.run(_column, service, *one, whole, encoded, given.k) for one in permitted]
    return Response(to_json({"k": given.k, "columns": columns}), media_type=JSON)


def _logged(service: Service, query: str) -> Given:
    """A logged query by both models."""
    found = logged_queries(service.rollout.path)
    position = None if found is None else next((i for i, known in enumerate(found.ids) if str(known) == query), None)
    if found is None or position is None:
        raise Problem(404, "query_not_found", f"The rollout has logged no query {query[:100]!r}.", "logged")
    return Given([found.y[position].tolist()], [found.x[position].tolist()], None)


async def _encoded(service: Service, texts: list[str]) -> dict[str, np.ndarray]:
    """The query by each encoder, by space."""
    found = {}
    for encoder in service.encoders:
        space = service.spaces[encoder.space]
        made = await service.encoders.encode(space.name, space.dim, EncodeRequest(texts, "query"))
        found[space.name] = checked_encoding(made.vectors, space)
    return found


def _column(
    service: Service, target: Target, strategy: str, given: Given, encoded: dict[str, np.ndarray], k: int
) -> dict[str, Any]:
    """The hits of one strategy; done in a thread."""
    column: dict[str, Any] = {"index": target.name, "strategy": strategy, "title": _title(service, target, strategy)}
    column |= {"space": None, "map": None, "hits": None, "unavailable": None}
    try:
        chosen = choose(service, SearchRequest(index=target.name, strategy=strategy))  # type: ignore[arg-type]
        if given.texts is not None:
            queries = _of_texts(encoded, chosen)
        else:
            queries = arrays_of(service, _part(given, chosen, rows_are_old=is_old(service, target.rows_space)), chosen)
        wanted = search_of(chosen, queries, k=k)
        [hits] = hits_of(target, wanted)
    except Problem as problem:
        if problem.status >= 429:
            raise
        return column | {"unavailable": problem.message}
    return column | {"space": chosen.space.to_dict(), "map": map_of(chosen.conversion, wanted), "hits": hits}


def _of_texts(encoded: dict[str, np.ndarray], chosen: Chosen) -> tuple[np.ndarray, np.ndarray | None]:
    """The query by the encoders of a strategy.

    Raises
    ------
    Problem
        There is no encoder.
    """
    old = None if chosen.old_space is None else encoded.get(chosen.old_space.name)
    needed = [chosen.space, *([chosen.old_space] if chosen.strategy == BLENDED and chosen.old_space is not None else [])]
    for space in needed:
        if space.name not in encoded:
            raise Problem.invalid(f"No encoder of {space.name!r} is served.", code="no_encoder")
    return encoded[chosen.space.name], old


def _part(given: Given, chosen: Chosen, *, rows_are_old: bool) -> Given:
    """The vectors that a strategy takes, out of those by the new and by the old model.

    Raises
    ------
    Problem
        They are missing.
    """
    if given.texts is not None:
        return given
    one = chosen.target.old_space is None
    takes_old = chosen.strategy == OLD or (one and rows_are_old == (chosen.strategy == OWN))
    main, other = (given.old_vectors, given.vectors) if takes_old else (given.vectors, given.old_vectors)
    if main is None:
        raise Problem.invalid(f"It takes the query by the {'old' if takes_old else 'new'} model, {chosen.space.name!r}.")
    return Given(main, other if chosen.old_space is not None else None, None)


def _title(service: Service, target: Target, strategy: str) -> str:
    if strategy == OLD:
        return "old"
    if strategy != OWN:
        return strategy
    if target.old_space is not None:
        return "translated"
    return "old" if is_old(service, target.space) else "new"


def _listed(service: Service) -> bytes:
    found = logged_queries(service.rollout.path)
    ids = [] if found is None else found.ids
    return to_json({"ids": [str(one) for one in ids[:_LISTED]], "count": len(ids)})


@router.get(
    "/v1/rollout/queries",
    summary="List logged queries",
    response_class=Response,
    responses={200: {"model": LoggedAnswer}, **answers(404)},
)
async def listed_queries(request: Request) -> Response:
    """List queries that the rollout has logged; `POST /v1/compare` takes their ids."""
    service = service_of(request)
    return Response(await service.workers.run(_listed, service), media_type=JSON)


@router.post(
    "/v1/queries",
    summary="Log queries for the rollout",
    response_class=Response,
    responses={200: {"model": LogAnswer}, **answers(400, 403, 408, 413, 415, 429, 502, 504)},
    openapi_extra=json_body("LogRequest"),
)
async def log_queries(request: Request) -> Response:
    """Log queries by both models, for `embridge rollout queries`. Off unless the service was started with `--query-log`.

    Vectors are stored, texts are not. The ids of the answer are those that judgments (qrels) refer to.
    """
    service, body = service_of(request), await request.body()
    log = service.query_log
    if log is None:
        raise Problem(403, "query_log_off", "Queries are not logged by this service. Hint: embridge serve --query-log FOLDER.")
    given = await service.workers.run(parsed_json, LogRequest, body, request.headers.get("content-type"))
    target = next(t for t in service.targets.values() if t.kind == "rollout")
    chosen = Chosen(target, BLENDED, target.space, target.old_space, None)
    new, old = await queries_of(service, Given(given.vectors, given.old_vectors, given.texts), chosen)
    if old is None:
        raise Problem.invalid("Queries are logged by both models: old_vectors are missing.", "old_vectors")
    request.scope[ROWS] = len(new)
    ids = await service.workers.run(log.add, old, new)
    return Response(to_json({"ids": ids}), media_type=JSON)
