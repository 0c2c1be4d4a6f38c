"""The HTTP service: `create_app` with the routes of the Tag tab, the API's description, and the page."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import python_multipart  # noqa: F401, whose absence FastAPI would report in an error of its own
from fastapi import APIRouter, FastAPI, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from joytag.app import reference
from joytag.app.batching import Busy
from joytag.app.security import LIMITS, LOCAL, PUBLIC_LIMITS, Access, Guard, Limits, RateLimit, client_of
from joytag.app.served import ModelRow, ServedModel, TagRow
from joytag.core.errors import describe
from joytag.data.images import ImageError
from joytag.tagging.tagger import EvidenceError, UnknownTag

PAGE = Path(__file__).parent / "page"
STATUS = {"not an image": 415, "too large": 413}  # of an ImageError's kind; 422 for all others
ModelNumber = Annotated[int, Query(ge=0, description="Which model, in the order of /api/models.")]


class Health(BaseModel):
    """That the service lives."""

    status: str = "ok"
    models: list[str] = Field(description="Names of the models.")


class TaggedFile(BaseModel):
    """What was found in one uploaded file."""

    name: str = Field(description="The file's name, as it was sent.")
    sha256: str = Field(description="Hash of the file's bytes, lower-case hex; images are named by it everywhere.")
    width: int = Field(0, description="Upright, pixels; halved beyond 50 megapixels.")
    height: int = 0
    tags: dict[str, float] = Field({}, description="Scores of the tags above their threshold, best first.")
    scores: list[float] | None = Field(None, description="Scores of all tags, in the order of /api/tags, if asked for.")
    error: str = Field("", description="Why the file could not be used, in one line; empty if it could.")


class Tagged(BaseModel):
    """The files of a request, in their order."""

    model: str
    files: list[TaggedFile]
    detail: str = Field("", description="The first error, if no file could be used.")


class Evidence(BaseModel):
    """What each patch of an image adds to a tag's logit, compared with an empty image.

    The patches cover the white square around the image.
    """

    rows: int
    columns: int
    values: list[list[float]] = Field(description="[rows][columns], in units of the logit, which is their sum.")
    logit: float
    score: float = Field(description="The sigmoid of the logit.")


def create_app(
    models: Sequence[ServedModel],
    access: Access = LOCAL,
    limits: Limits | None = None,
    labelling: APIRouter | None = None,
) -> FastAPI:
    """Return the app, which serves models to those that `access` admits; it does not close their batchers.

    `labelling` has the routes of the Label tab. Raises ValueError for such routes in a public service.
    """
    if labelling and access.public:
        raise ValueError("a public service has no labelling")
    limits = limits or (PUBLIC_LIMITS if access.public else LIMITS)

    app = FastAPI(
        title="JoyTag",
        version="1",
        summary="Tags of images, and where they are seen.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        form_limits={"max_files": limits.files, "max_fields": 16, "max_part_size": 4096},
    )
    app.state.models, app.state.access = models, access
    app.state.rate = RateLimit(limits.images_per_minute) if limits.images_per_minute else None
    app.add_middleware(Guard, access=access, limits=limits, rate=app.state.rate)
    app.include_router(router, prefix="/api")
    if labelling:
        app.include_router(labelling, prefix="/api")
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.add_exception_handler(RequestValidationError, explain)
    app.add_exception_handler(OSError, explain)
    return app


async def explain(_: Request, error: Any) -> Response:
    """Name the file that cannot be used, or the wrong fields of a request without what they hold.

    That may be large, and JSON could not hold all of it.
    """
    is_field, keys = isinstance(error, RequestValidationError), ("type", "loc", "msg")
    detail = [{key: row[key] for key in keys} for row in error.errors()] if is_field else describe(error)
    return Response(json.dumps({"detail": detail}), 422 if is_field else 500, media_type="application/json")


router = APIRouter(tags=["Tag"])
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Too many files, or no form."},
    404: {"description": "No such model or tag."},
    408: {"description": "The upload is too slow."},
    413: {"description": "Too many bytes or pixels."},
    415: {"description": "No image."},
    429: {"description": "Too many images a minute, where the service is public."},
    503: {"description": "Busy; Retry-After says when to try again."},
}


def model_of(request: Request, number: int) -> ServedModel:
    """Return a model by its number. Raises HTTPException."""
    models: Sequence[ServedModel] = request.app.state.models
    if number >= len(models):
        raise HTTPException(404, f"model {number}: there are {len(models)}")
    return models[number]


@router.get("/health")
async def health(request: Request) -> Health:
    """Say that the service lives."""
    return Health(models=[model.name for model in request.app.state.models])


@router.get("/models")
async def list_models(request: Request) -> list[ModelRow]:
    """List the models that are served."""
    return [model.row for model in request.app.state.models]


@router.get("/tags")
async def list_tags(request: Request, model: ModelNumber = 0) -> list[TagRow]:
    """List the tags of a model, in the order of their scores."""
    return model_of(request, model).rows


@router.post("/tag", responses=REFUSALS)
async def tag(
    request: Request,
    response: Response,
    files: Annotated[list[UploadFile], File(description="Images.")],
    model: Annotated[int, Form(ge=0, description="Which model, in the order of /api/models.")] = 0,
    threshold: Annotated[
        float | None, Form(ge=0, le=1, description="Score above which tags are listed; each tag's own without it.")
    ] = None,
    scores: Annotated[bool, Form(description="Also return the scores of all tags.")] = False,
) -> Tagged:
    """Tag images.

    Files that cannot be used have an `error`. If none can be used, the status is that of the first error: 413 for too
    many pixels, 415 for what is no image, 422 for a damaged one.
    """
    served = model_of(request, model)
    if request.app.state.rate and len(files) > 1:  # the first is counted before it is read
        request.app.state.rate.take(client_of(request.scope), len(files) - 1)
    limit = served.thresholds if threshold is None else threshold
    results = await asyncio.gather(*(_tagged(served, file, limit, scores) for file in files))
    answers, statuses = [answer for answer, _ in results], [status for _, status in results]
    if 200 in statuses:
        return Tagged(model=served.name, files=answers)
    response.status_code = statuses[0]
    return Tagged(model=served.name, files=answers, detail=answers[0].error)


async def _tagged(
    served: ServedModel, file: UploadFile, threshold: float | NDArray[np.float32], with_scores: bool
) -> tuple[TaggedFile, int]:
    """Return what was found in a file, and the status that it deserves. Raises HTTPException when too many wait."""
    content = await file.read()
    answer = TaggedFile(name=file.filename or "", sha256=hashlib.sha256(content).hexdigest())
    try:
        found = await asyncio.wrap_future(served.batcher.submit(content))
    except Busy:
        raise HTTPException(503, "busy; try again", {"Retry-After": "5"}) from None
    except ImageError as error:
        answer.error = str(error)
        return answer, STATUS.get(error.kind, 422)
    answer.width, answer.height = found.size
    answer.tags = served.tagger.result(found.scores, threshold).tags
    answer.scores = found.scores.astype(np.float64).round(6).tolist() if with_scores else None
    return answer, 200


@router.post("/evidence", responses=REFUSALS)
async def evidence(
    request: Request,
    file: Annotated[UploadFile, File(description="An image.")],
    tag: Annotated[str, Form(description="A tag of the model, in any spelling.")],
    model: Annotated[int, Form(ge=0, description="Which model, in the order of /api/models.")] = 0,
) -> Evidence:
    """Show where an image speaks for a tag and where against it."""
    return await evidence_of(model_of(request, model), await file.read(), tag)


async def evidence_of(served: ServedModel, image: bytes, tag: str) -> Evidence:
    """Return the evidence for a tag in an encoded image. Raises HTTPException."""
    try:
        values = await run_in_threadpool(served.tagger.evidence, image, tag)
    except ImageError as error:
        raise HTTPException(STATUS.get(error.kind, 422), str(error)) from None
    except (UnknownTag, EvidenceError) as error:
        raise HTTPException(404 if isinstance(error, UnknownTag) else 422, str(error)) from None
    exact = values.astype(np.float64)
    (rows, columns), logit = values.shape, float(exact.sum())
    score = float(1 / (1 + np.exp(-logit)))
    return Evidence(rows=rows, columns=columns, values=exact.round(8).tolist(), logit=logit, score=score)


@router.get("/docs", include_in_schema=False)
async def describe_api(request: Request) -> HTMLResponse:
    """Describe the routes for readers."""
    return HTMLResponse(reference.page(request.app.openapi()))
