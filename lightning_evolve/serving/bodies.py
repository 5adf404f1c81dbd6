"""Bodies of requests, checked by pydantic, and what is wrong with them as one sentence."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

MAX_CHARACTERS = 10_000
MAX_TEXTS = 100


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; give it some text")
    return text


Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_not_blank)]
Name = Annotated[str, Field(max_length=100), AfterValidator(_not_blank)]
Body = TypeVar("Body", bound=BaseModel)


class PredictBody(BaseModel):
    """What ``POST /predict`` takes.

    Args:
        text: a text to classify, or
        texts: several.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Text | None = None
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.texts is None):
            raise ValueError('give either "text" or "texts"')
        return self


class FeedbackBody(BaseModel):
    """What ``POST /feedback`` takes.

    Args:
        id: of the prediction.
        label: the right one.
        source: who says so.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Name
    label: Name
    source: Name = "http"


class BodyError(ValueError):
    """A body that is not what the endpoint takes; the message is one sentence."""


def parse(kind: type[Body], content: bytes) -> Body:
    """Reads and checks a body.

    Args:
        kind: what it should be.
        content: JSON.

    Raises:
        BodyError: naming what is wrong first.

    >>> parse(PredictBody, b'{"text": "Fine."}').text
    'Fine.'
    >>> parse(PredictBody, b'{"txt": "Fine."}')
    Traceback (most recent call last):
    lightning_evolve.serving.bodies.BodyError: unknown key "txt"; did you mean "text"?
    >>> parse(PredictBody, b'{"texts": ["Fine.", 3]}')
    Traceback (most recent call last):
    lightning_evolve.serving.bodies.BodyError: "texts[1]": input should be a valid string
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise BodyError(_sentence(error.errors()[0], list(kind.model_fields))) from None


def _sentence(error: Any, keys: list[str]) -> str:
    name = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in error["loc"]).lstrip(".")
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"the body is no JSON ({message.partition(': ')[2]})"
    if kind == "extra_forbidden":
        close = get_close_matches(name, keys, n=1)
        remedy = f'did you mean "{close[0]}"?' if close else f"it takes {', '.join(keys)}"
        return f'unknown key "{name[:50]}"; {remedy}'
    if kind == "missing":
        return f'"{name}" is missing'
    if not name:
        return message if kind == "value_error" else f"the body is no JSON object with {keys[0]}"
    if kind == "value_error":
        return f'"{name}" {message}'
    return f'"{name}": {message[0].lower()}{message[1:]}'
