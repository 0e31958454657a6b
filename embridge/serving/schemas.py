"""The fields of requests and answers, checked by pydantic and documented in OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Vectors = Annotated[list[Annotated[list[Number], Field(fail_fast=True)]], Field(fail_fast=True, min_length=1)]
Text = Annotated[str, Field(strict=True, min_length=1)]
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]], Field(fail_fast=True, min_length=1)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=1000)]


class _Request(BaseModel):
    """A body without other fields: a misspelled one must not be ignored."""

    model_config = ConfigDict(extra="forbid")


class SpaceFacts(BaseModel):
    """A space of vectors."""

    name: str
    dim: int
    metric: Literal["cosine", "dot", "l2"]
    normalized: bool = Field(description="Every vector has unit length.")


class MapName(BaseModel):
    """Which map was used."""

    name: str
    fingerprint: str


class TranslateRequest(_Request):
    """Vectors to translate."""

    vectors: Vectors = Field(description="Rows of numbers, all as wide as the space that they come from.")
    map: Name | None = Field(None, description="Default: the only one.")
    to: Name | None = Field(
        None,
        description="Space to translate into, an end of the map. Default: its target; its source takes queries, by the adjoint.",
    )


class TranslateAnswer(BaseModel):
    """Translated vectors, in the order of the request."""

    vectors: list[list[float]]
    space: SpaceFacts
    map: MapName


class EmbeddingsRequest(BaseModel):
    """As OpenAI's API has it; other fields are ignored."""

    model: Name = Field(description="One of `GET /v1/models`. Its name begins with the space of the vectors that come back.")
    input: Text | Texts | Tokens | Annotated[list[Tokens], Field(fail_fast=True, min_length=1)] = Field(
        description="A text, texts, tokens, or lists of tokens. Tokens are passed on to an upstream, and refused by a local model."
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="Default: `float`.")
    dimensions: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="Only the width of the space is possible."
    )
    user: Annotated[str, Field(strict=True)] | None = Field(None, description="Passed on to an upstream.")


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class Usage(BaseModel):
    """Tokens, as the encoder counted them."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """As OpenAI's API has it."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A conversion of the vectors of an encoder."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When the file of the map changed, in seconds since 1970.")
    owned_by: str
    space: SpaceFacts = Field(description="Of the vectors that come back.")
    encoder: str = Field(description="Space of the encoder that texts go through first.")
    role: Literal["query", "document"]
    map: MapName


class Models(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


Strategy = Literal["own-space", "old-space", "projected", "blended", "fused", "native"]
Count = Annotated[int, Field(strict=True, ge=1, le=1000)]


class _Queries(_Request):
    vectors: Vectors | None = Field(None, description="Queries. Their space follows from the strategy.")
    old_vectors: Vectors | None = Field(None, description="The same queries by the model of the rows, or of the old rows.")
    texts: Texts | None = Field(None, description="Queries as texts, in place of vectors; the service must have the encoders.")


class SearchRequest(_Queries):
    """Queries and how to search with them."""

    index: Name | None = Field(None, description="Default: the only one.")
    strategy: Strategy | None = Field(None, description="Default: that of the index, see `GET /v1/maps`.")
    space: Name | None = Field(None, description="Name of the space of `vectors`; where it is given, it is checked.")
    map: Name | None = Field(None, description="Map that projects queries. Default: the best one that is served.")
    k: Count = Field(10, description="Hits a query.")
    weight: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Of the new side, in blended and fused searches.")
    hubness: Literal["none", "old", "new", "both"] | None = Field(None, description="Sides of a fused search to correct.")
    parameters: Annotated[str, Field(strict=True, max_length=1000)] = Field("", description="Of FAISS, such as `efSearch=128`.")


class Hit(BaseModel):
    """A row that was found."""

    id: str | int
    score: float = Field(description="Higher is closer.")


class SearchAnswer(BaseModel):
    """Hits of each query, best first."""

    index: str
    strategy: Strategy
    space: SpaceFacts = Field(description="Of the queries.")
    map: MapName | None = Field(description="That projected the queries.")
    hits: list[list[Hit]]


class CompareRequest(_Queries):
    """One query, for all strategies."""

    logged: Name | None = Field(None, description="A query that the rollout has logged, by its id, in place of vectors or texts.")
    k: Count = Field(10, description="Hits of each strategy.")


class Column(BaseModel):
    """The hits of one strategy, or why it cannot be used."""

    index: str
    strategy: Strategy
    title: str = Field(description="`old`, `translated`, `new`, `projected`, `blended`, `fused` or `native`.")
    space: SpaceFacts | None = Field(description="Of the query.")
    map: MapName | None
    hits: list[Hit] | None
    unavailable: str | None = Field(description="Why there are no hits.")


class CompareAnswer(BaseModel):
    """Strategies side by side."""

    k: int
    columns: list[Column]


class LogRequest(_Queries):
    """Queries to log, by both models, or as texts where the service has both encoders."""


class LogAnswer(BaseModel):
    """The ids under which queries were logged, in their order."""

    ids: list[str]


class LoggedAnswer(BaseModel):
    """Queries that the rollout has logged."""

    ids: list[str] = Field(description="The first 100.")
    count: int


class MapFacts(BaseModel):
    """A map that is served."""

    name: str
    fingerprint: str
    method: str
    kind: Literal["linear", "kernel"]
    role: str = Field(description="What it was fitted for: `documents`, `queries` or `decode`; empty where unknown.")
    source: SpaceFacts
    target: SpaceFacts
    anchors: int
    has_adjoint: bool
    models: list[str] = Field(description="Names for `POST /v1/embeddings`.")
    quality: list[dict[str, Any]] = Field(description="Scores of the last evaluation in the catalog, one a strategy.")
    fault: str | None = Field(description="Why a newer file is not used.")


class IndexFacts(BaseModel):
    """Something that is searched."""

    name: str
    kind: Literal["index", "collection", "rollout"]
    space: SpaceFacts
    old_space: SpaceFacts | None
    strategies: list[Strategy]
    default: Strategy | None
    refused: dict[str, str] = Field(description="Strategies that it does not permit, and why.")
    fault: str | None


class EncoderFacts(BaseModel):
    """An encoder of texts."""

    space: str
    kind: Literal["model", "upstream"]


class MapsAnswer(BaseModel):
    """What is served."""

    maps: list[MapFacts]
    indexes: list[IndexFacts]
    encoders: list[EncoderFacts]
    query_log: bool
    plan: int | None = Field(description="Run of the newest plan in the catalog, see `GET /v1/plan`.")
    catalog_fault: str | None = Field(description="Why there are no figures from the catalog.")


class PlanAnswer(BaseModel):
    """The newest plan in the catalog."""

    run: int
    finished_at: str
    method: str
    k: int
    queries: int
    judged: int
    corpus: int
    anchors: int
    strategies: list[dict[str, Any]]
    recommendations: list[dict[str, Any]]
    learning_curve: list[dict[str, Any]]


class RolloutAnswer(BaseModel):
    """The state of the rollout, as `embridge rollout status --json` prints it."""

    name: str
    old_space: SpaceFacts
    space: SpaceFacts
    status: dict[str, Any]


class Health(BaseModel):
    """Whether it runs, or can take requests."""

    status: Literal["ok"] = "ok"
