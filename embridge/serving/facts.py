"""What is served and how good it is: ``GET /v1/maps``, ``/v1/plan`` and ``/v1/rollout``, with figures from the catalog."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from embridge.catalog import Catalog
from embridge.errors import EmbridgeError
from embridge.maps import KernelMap
from embridge.serving.encoders import LocalEncoder
from embridge.serving.maps import ServedMap, signature
from embridge.serving.media import JSON
from embridge.serving.problems import Problem, answers
from embridge.serving.schemas import MapsAnswer, PlanAnswer, RolloutAnswer
from embridge.serving.searching import default_strategy, refusals
from embridge.serving.service import Service
from embridge.serving.targets import STRATEGIES, Target
from embridge.serving.translating import service_of

router = APIRouter(tags=["facts"])
_PATIENCE = 1.0  # seconds for a catalog that another process holds


class Figures:
    """Figures of the catalog, read again when its file changed.

    Parameters
    ----------
    path : str, optional
        Default: as for `Catalog`.
    """

    def __init__(self, path: str | None) -> None:
        self._catalog, self._known = Catalog(path, patience=_PATIENCE), {}

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Rows of a query; none where there is no catalog.

        Raises
        ------
        EmbridgeError
            The catalog cannot be read.
        """
        path = self._catalog.path
        present = (signature(path), signature(f"{path}.wal"))
        if present[0] is None:
            return []
        if self._known.get(query, (None,))[0] != present:
            self._known = {q: kept for q, kept in self._known.items() if kept[0] == present}
            self._known[query] = (present, [_plain(row) for row in self._catalog.sql(query)])
        return self._known[query][1]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it."""
    values = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return {name: v if v is None or isinstance(v, str | bool | int | float) else str(v) for name, v in values.items()}


def _quality(figures: Figures, fingerprint: str) -> list[dict[str, Any]]:
    """The last evaluation of a map, one row a strategy."""
    return figures.rows(
        "SELECT e.run, e.strategy, e.k, e.queries, e.corpus, e.judged, e.overlap, e.overlap_low, e.overlap_high, e.recall, "
        "e.recall_low, e.recall_high, e.mrr, e.ndcg, e.weight, e.correction, b.benchmark FROM evaluation e "
        f"LEFT JOIN benchmark b USING (run, translator) WHERE e.translator = '{fingerprint}' "
        "QUALIFY dense_rank() OVER (ORDER BY e.run DESC) = 1 ORDER BY e.overlap DESC"
    )


def _map_facts(service: Service, served: ServedMap, quality: list[dict[str, Any]]) -> dict[str, Any]:
    translation = served.translation
    record = translation.record
    models = [name for name, conversion in service.models().items() if conversion.map == served.name]
    facts: dict[str, Any] = {"name": served.name, "fingerprint": translation.fingerprint, "method": record.method}
    facts |= {"kind": "kernel" if isinstance(translation, KernelMap) else "linear", "role": record.role}
    facts |= {"source": translation.source.to_dict(), "target": translation.target.to_dict(), "anchors": record.anchors}
    facts |= {"has_adjoint": served.has_adjoint, "models": models, "quality": quality, "fault": served.fault or None}
    return facts


def _index_facts(service: Service, target: Target) -> dict[str, Any]:
    refused = refusals(service, target)
    facts: dict[str, Any] = {"name": target.name, "kind": target.kind, "space": target.space.to_dict()}
    facts |= {"old_space": None if target.old_space is None else target.old_space.to_dict()}
    facts |= {"strategies": [s for s in STRATEGIES if s not in refused], "default": default_strategy(service, target)}
    return facts | {"refused": refused, "fault": target.fault or None}


def _all(service: Service, figures: Figures) -> bytes:
    fault, quality, plans = None, {}, []
    try:
        quality = {served.name: _quality(figures, served.translation.fingerprint) for served in service.maps}
        plans = figures.rows("SELECT max(run) AS run FROM plan")
    except EmbridgeError as e:
        fault = str(e)
    found: dict[str, Any] = {"maps": [_map_facts(service, served, quality.get(served.name, [])) for served in service.maps]}
    found["indexes"] = [_index_facts(service, target) for target in service.targets.values()]
    encoders = ((encoder.space, isinstance(encoder, LocalEncoder)) for encoder in service.encoders)
    found["encoders"] = [{"space": space, "kind": "model" if local else "upstream"} for space, local in encoders]
    found |= {"query_log": service.query_log is not None, "plan": plans[0]["run"] if plans else None}
    return to_json(found | {"catalog_fault": fault})


@router.get("/v1/maps", summary="List maps", response_class=Response, responses={200: {"model": MapsAnswer}, **answers()})
async def maps(request: Request) -> Response:
    """List what is served: maps with their spaces, fingerprints and measured quality; indexes with their strategies; encoders."""
    service = service_of(request)
    return Response(await service.workers.run(_all, service, request.app.state.figures), media_type=JSON)


def _plan(figures: Figures) -> bytes:
    last = figures.rows(
        "SELECT run.id AS run, run.finished_at, p.method, p.k, p.queries, p.judged, p.corpus, p.anchors FROM run "
        "JOIN plan p ON p.run = run.id ORDER BY run.id DESC LIMIT 1"
    )
    if not last:
        raise Problem(404, "no_plan", "The catalog has no plan. Hint: embridge plan OLD SAMPLE_NEW --queries ...")
    where = f"WHERE run = {int(last[0]['run'])}"
    left_out = "EXCLUDE (run, method, anchors, k, queries, corpus, judged)"
    parts = {
        "strategies": figures.rows(f"SELECT * {left_out} FROM plan {where} ORDER BY gain DESC"),
        "recommendations": figures.rows(f"SELECT * EXCLUDE (run) FROM recommendation {where} ORDER BY situation"),
        "learning_curve": figures.rows(f"SELECT * EXCLUDE (run) FROM learning_curve {where} ORDER BY anchors"),
    }
    return to_json(last[0] | parts)


@router.get(
    "/v1/plan", summary="Show the newest plan", response_class=Response, responses={200: {"model": PlanAnswer}, **answers(404)}
)
async def plan(request: Request) -> Response:
    """Show the newest plan of the catalog: scores and costs of every strategy, recommendations, and the learning curve."""
    service = service_of(request)
    return Response(await service.workers.run(_plan, request.app.state.figures), media_type=JSON)


def _rollout(target: Target) -> bytes:
    if target.rollout is None or target.old_space is None:
        raise Problem(404, "no_rollout", "No rollout is served.")
    status = target.rollout.status().to_dict()
    facts = {"name": target.name, "old_space": target.old_space.to_dict(), "space": target.space.to_dict(), "status": status}
    return to_json(facts)


@router.get(
    "/v1/rollout", summary="Show the rollout", response_class=Response, responses={200: {"model": RolloutAnswer}, **answers(404)}
)
async def rollout(request: Request) -> Response:
    """Show the state of the rollout: its stage, what was measured, the forecast, and the curve of past stages."""
    service = service_of(request)
    return Response(await service.workers.run(_rollout, service.rollout), media_type=JSON)
