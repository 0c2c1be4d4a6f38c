"""The routes of the Label tab, below /label; images are named by their sha256, never by a path."""

from __future__ import annotations

import io
from typing import Annotated

from fastapi import APIRouter, Body, HTTPException, Query, Response
from pydantic import AfterValidator, BaseModel, Field

from joytag.app.decisions import Answered, Decision, Sha256, Tag
from joytag.app.labelling import Doubt, Labelling
from joytag.app.learning import Progress
from joytag.app.queues import Precision
from joytag.app.service import Evidence, evidence_of
from joytag.app.suggestions import Suggestions
from joytag.core.terminal import printable
from joytag.data import images
from joytag.data.tag_names import canonical

CACHED = {"Cache-Control": "private, max-age=31536000, immutable"}  # the image of a sha256 never changes
Shown = Annotated[str, AfterValidator(printable)]  # a file's name, which need not be text


class State(BaseModel):
    """What is labelled, and how far the work in the background is."""

    folder: Shown = Field(description="Name of the folder or dataset.")
    model: str = Field(description="Name of the model that orders the questions.")
    files: int = Field(description="Files with the name of an image.")
    scored: int = Field(description="Different images that can be asked about.")
    broken: dict[Shown, str] = Field(description="Names of the files that are no images, with the reasons.")
    decided: int = Field(description="Images with a decision.")
    is_scoring: bool
    failure: str = Field(description="Why scoring has ended early; empty if it has not.")
    learning: Progress


class Word(BaseModel):
    """A tag, and how many images have each answer."""

    tag: str
    is_known: bool = Field(description="Whether the model knows it.")
    yes: int = 0
    no: int = 0
    unsure: int = 0


class GridImage(BaseModel):
    """An image of a grid."""

    sha256: str
    names: list[Shown] = Field(description="Its files, relative to the folder.")
    score: float


class Grid(BaseModel):
    """The next images to ask about one tag, and what is known about the others."""

    tag: str
    is_known: bool = Field(description="Whether the model knows it; if not, scores follow from the decided images.")
    threshold: float
    images: list[GridImage]
    left: int = Field(description="Images without a decision.")
    left_above: int = Field(description="Those of them above the threshold.")
    precision: Precision
    stop: str = Field(description="Why there is no need to go on; empty if there is.")


def create_router(labelling: Labelling) -> APIRouter:
    """Return the routes; images that are gone, have changed or are not read yet have the status 404."""
    router = APIRouter(prefix="/label", tags=["Label"])
    collection, decisions, learning = labelling.collection, labelling.decisions, labelling.learning

    def read(sha256: str) -> bytes:
        content = collection.read(sha256)
        if content is None:
            raise HTTPException(404, f"{sha256}: no such image; it is gone, has changed, or is not read yet")
        return content

    @router.get("")
    def state() -> State:
        """Return what is labelled, and how far the work in the background is."""
        return State(
            folder=collection.root.absolute().name,
            model=labelling.current.served.name,
            files=len(collection.names),
            scored=len(labelling.scored().images),
            broken={file.name: file.error for file in collection.files() if file.error},
            decided=len(decisions.by_image()),
            is_scoring=collection.is_working,
            failure=collection.failure,
            learning=learning.progress(),
        )

    @router.get("/words")
    def words(text: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> list[Word]:
        """Return tags that contain a text, of the model and new ones; those that begin with it come first."""
        counts, known, part = decisions.counts(), dict.fromkeys(labelling.current.tags), canonical(text)
        found = sorted((tag for tag in known | counts if part in tag), key=lambda tag: not tag.startswith(part))
        return [Word(tag=tag, is_known=tag in known, **counts.get(tag, {})) for tag in found[:limit]]

    @router.get("/grid")
    def grid(tag: Tag, count: Annotated[int, Query(ge=10, le=200)] = 24) -> Grid:
        """Return the images where a tag is most worth a decision; images that are decided never return."""
        scored = labelling.scored()
        queue = labelling.queue(tag, scored)
        above, left = queue.left()
        page = [(scored.images[i], float(queue.scores[i])) for i in queue.page(count, scored.vectors)]
        return Grid(
            tag=tag,
            is_known=tag in labelling.current.tags,
            threshold=queue.threshold,
            images=[GridImage(sha256=image, names=collection.find(image), score=score) for image, score in page],
            left=left,
            left_above=above,
            precision=queue.precision(),
            stop=queue.reason_to_stop(),
        )

    @router.get("/images")
    def image_order(limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> list[str]:
        """Return the images with undecided tags near their thresholds, those with the most of them first."""
        return labelling.image_order()[:limit]

    @router.get("/images/{sha256}/tags")
    def image_tags(sha256: Sha256) -> Suggestions | None:
        """Return an image's tags, by what they need; null while it has no scores."""
        return labelling.suggestions(sha256)

    @router.get("/images/{sha256}/picture", response_class=Response)
    def picture(sha256: Sha256, side: Annotated[int, Query(ge=16, le=2048)] = 320) -> Response:
        """Return an image as a JPEG on white, its longest side at most `side` pixels."""
        buffer = io.BytesIO()
        images.decode_reduced(read(sha256), side).fit(side).save(buffer, "JPEG", quality=88)
        return Response(buffer.getvalue(), media_type="image/jpeg", headers=CACHED)

    @router.get("/images/{sha256}/evidence")
    async def evidence(sha256: Sha256, tag: Tag) -> Evidence:
        """Show where an image speaks for a tag and where against it."""
        return await evidence_of(labelling.current.served, read(sha256), tag)

    @router.get("/doubts")
    def doubts() -> list[Doubt]:
        """Return the labels that an evaluation of the model holds for wrong, without a decision, the surest first."""
        return labelling.doubts()

    @router.post("/decisions")
    def decide(answers: Annotated[list[Answered], Body(min_length=1, max_length=5_000)]) -> list[Decision]:
        """Keep decisions as one step, with what follows from them; the answer comes when they are on the disk.

        Those that are kept already are left out of the answer, so that a request may be repeated.
        """
        for sha256 in {row.sha256 for row in answers}:
            if not collection.find(sha256) and sha256 not in labelling.current.scores:  # which was shown, and is gone
                raise HTTPException(404, f"{sha256}: no such image")
        return labelling.decide([Decision(**row.model_dump()) for row in answers])

    @router.post("/undo")
    def undo(step: int | None = None) -> list[Decision]:
        """Undo a step, by default the last, and return its decisions; none if it is undone already."""
        return decisions.undo(step)

    @router.post("/learn", status_code=202)
    async def learn() -> Progress:
        """Start to fine-tune the first model on what is decided; when it has learned, it orders the questions."""
        if not learning.start(labelling.first.directory, labelling.examples, labelling.use):
            raise HTTPException(409, "the model is learning already")
        return learning.progress()

    @router.delete("/learn")
    async def stop_learning() -> Progress:
        """Stop to learn."""
        await learning.stop()
        return learning.progress()

    return router
