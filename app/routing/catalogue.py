"""The model catalogue: data about what the upstream offers where. Knows no account and no team."""

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import NotReady

OUR_FILE = Path(__file__).with_name("catalogue.toml")
DEFAULT_BUFFER = 2  # tasks kept waiting upstream beyond those it works on, so that its slots never idle


class Limits(BaseModel):
    """What the upstream allows one main account in one region."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rps: float = Field(gt=0)
    running: int = Field(gt=0)
    buffer: int = Field(DEFAULT_BUFFER, ge=0)


class MostRule(BaseModel):
    """How to read the most units a request can make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: str | None = None
    parameter: str
    default: int = Field(gt=0)


class Offer(BaseModel):
    """One model: its path, what it counts, and the regions that have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    unit: str
    most: tuple[MostRule, ...] = Field(min_length=1)
    regions: dict[str, Limits]


class Catalogue(BaseModel):
    """All models by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, Offer]

    def find(self, model: str) -> Offer | None:
        """Return what is known of a model, or None."""
        return self.models.get(model)


@lru_cache(maxsize=4)
def load_catalogue(extra: Path | None) -> Catalogue:
    """Read our file and the operator's, once per process.

    Raises:
        NotReady: the operator's file is missing or malformed; the message says where.
    """
    ours = _read(OUR_FILE)
    if extra is None:
        return ours
    return Catalogue(models={**ours.models, **_read(extra).models})


def unit_of(catalogue: Catalogue, model: str) -> str:
    """Return what a model's tasks are counted in; a model that has left the catalogue is counted in images.

    >>> unit_of(load_catalogue(None), "wan2.6-image")
    'image'
    """
    offer = catalogue.find(model)
    return offer.unit if offer else "image"


def most_units(offer: Offer, parameters: dict[str, Any]) -> int:
    """Return the most units a request with these parameters can make.

    >>> offer = load_catalogue(None).models["wan2.6-image"]
    >>> most_units(offer, {}), most_units(offer, {"n": 1}), most_units(offer, {"enable_interleave": True})
    (4, 1, 5)
    >>> most_units(offer, {"n": "all"})  # nonsense is the upstream's to refuse; until then the default holds
    4
    """
    rule = next((rule for rule in offer.most if rule.when is None or parameters.get(rule.when) is True), offer.most[-1])
    asked = parameters.get(rule.parameter)
    return asked if type(asked) is int and 0 < asked <= 1000 else rule.default


def _read(path: Path) -> Catalogue:
    try:
        return Catalogue.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise NotReady("E05", f"the catalogue file {path.name} cannot be used", str(error)) from error
