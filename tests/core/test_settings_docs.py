"""Tests of joytag.core.settings_docs."""

from typing import Annotated, Literal

from pydantic import Field

from joytag.core import settings_docs
from joytag.core.settings import MayChange, Settings


class Stage(Settings):
    """A stretch of training."""

    samples: int = Field(ge=1)
    """How many images."""


class Loss(Settings):
    """The loss."""

    name: Literal["focal", "bce"] = "focal"


class Run(Settings):
    """Settings of a run.

    One paragraph more.
    """

    output: str
    """Where it
    goes."""

    rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The learning rate."""

    betas: tuple[float, float] = (0.9, 0.999)
    loss: Annotated[Loss, MayChange("on Sundays")] = Loss()
    workers: Annotated[int, MayChange("at any time")] = 1
    stages: list[Stage]
    """They follow each other."""


INTRODUCTION = (
    f"One paragraph more. Generated from the fields of `{__name__}.Run`. A key with dots is nested in a "
    "file\nand written with dots in an override: `section.key=value`."
)
EXPECTED = f"""# Settings of a run

{INTRODUCTION}

- `output` (text; required): Where it goes.
- `rate` (number above 0 and below 1 or null; default `null`): The learning rate.
- `betas` (list of 2: number each; default `[0.9, 0.999]`)
- `workers` (whole number; default `1`) May change at any time.

## loss

The loss. May change on Sundays.

- `loss.name` (`focal` or `bce`; default `focal`)

## stages

They follow each other. A stretch of training. A list: `N` is 0 for the first item.

- `stages.N.samples` (whole number at least 1; required): How many images.
"""


def test_the_reference_lists_every_key_with_type_default_and_description():
    assert settings_docs.markdown(Run) == EXPECTED


def test_an_editor_requires_keys_only_where_no_base_file_can_give_them():
    schema = settings_docs.json_schema(Run)
    assert list(schema["properties"]) == ["base", "output", "rate", "betas", "loss", "workers", "stages"]
    assert "required" not in schema
    assert schema["$defs"]["Stage"]["required"] == ["samples"]
    assert schema["additionalProperties"] is False
    samples = schema["$defs"]["Stage"]["properties"]["samples"]
    assert samples == {
        "type": ["integer", "string"],
        "pattern": r"^\d[\d_]*$",
        "minimum": 1,
        "description": "How many images.",
    }
    assert schema["properties"]["workers"] == {"type": ["integer", "string"], "pattern": r"^\d[\d_]*$", "default": 1}
    assert schema["properties"]["output"]["description"] == "Where it\ngoes."
