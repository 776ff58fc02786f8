"""The model catalogue: data about what the upstream offers where. Knows no account and no team."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import InvalidParameter, NotReady

OUR_FILE = Path(__file__).with_name("catalogue.toml")
DEFAULT_BUFFER = 2  # tasks kept waiting upstream beyond those it works on, so that its slots never idle
MOST_ASKED = 1000  # a larger `n` is nonsense, and the upstream's to refuse
WILDCARDS = frozenset("*?[")
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")  # only such a name can match a pattern
# A path is words and slashes: it can lead nowhere but below /services/.
PLAIN_PATH = r"^[A-Za-z0-9_-]{1,40}(/[A-Za-z0-9_-]{1,40}){0,5}/?$"


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
    parameter: str | None = None
    default: int = Field(gt=0)


ServicePath = Annotated[str, Field(pattern=PLAIN_PATH)]
UNLISTED_LIMITS = Limits(rps=1, running=1)


class Offer(BaseModel):
    """One model: the paths it is called by, what it counts, and the regions that have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: ServicePath | None = None
    sync_path: ServicePath | None = None
    bodies_differ: bool = False
    async_only_in: tuple[str, ...] = ()
    sync_only_in: tuple[str, ...] = ()
    streams: bool = False
    unit: str = Field("image", min_length=1)
    most: tuple[MostRule, ...] = Field((MostRule(parameter="n", default=1),), min_length=1)
    regions: dict[str, Limits]
    elsewhere: Limits | None = None  # in every other region: for models that no catalogue lists

    @model_validator(mode="after")
    def _has_a_path(self) -> "Offer":
        if self.path is None and self.sync_path is None:
            raise ValueError("an entry needs a path, a sync_path, or both")
        return self

    def limits_in(self, region: str) -> Limits | None:
        """Return what a region allows, or None when it does not have the model."""
        return self.regions.get(region, self.elsewhere)

    def async_path_in(self, region: str) -> str | None:
        """Return the path of the asynchronous create in a region, or None when it has none."""
        return None if region in self.sync_only_in or self.limits_in(region) is None else self.path

    def sync_path_in(self, region: str) -> str | None:
        """Return the path of the synchronous call in a region, or None when it has none."""
        return None if region in self.async_only_in or self.limits_in(region) is None else self.sync_path


class Family(Offer):
    """Models that are offered alike, by name or pattern."""

    models: tuple[str, ...] = Field(min_length=1)


class CatalogueFile(BaseModel):
    """A catalogue as it is written: an entry per model, or per family of models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, Offer] = {}
    families: tuple[Family, ...] = ()

    @model_validator(mode="after")
    def _names_each_once(self) -> "CatalogueFile":
        names = [*self.models, *(name for family in self.families for name in family.models)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return self

    def entries(self) -> dict[str, Offer]:
        """Return every offer by its name or pattern, in the order of the file."""
        return {**self.models, **{name: family for family in self.families for name in family.models}}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models: by name, and by pattern in the order in which they are tried."""

    models: Mapping[str, Offer]
    patterns: Mapping[str, Offer]

    def find(self, model: str) -> Offer | None:
        """Return what is known of a model, or None. A name wins over a pattern.

        >>> catalogue = load_catalogue(None)
        >>> catalogue.find("wan2.6-t2v").path
        'aigc/video-generation/video-synthesis'
        >>> catalogue.find("wan 2.6-t2v") is catalogue.find("wan2.6-text") is None
        True
        """
        named = self.models.get(model)
        if named is not None or PLAIN_NAME.fullmatch(model) is None:
            return named
        return next((offer for pattern, offer in self.patterns.items() if fnmatchcase(model, pattern)), None)


@lru_cache(maxsize=4)
def load_catalogue(extra: Path | None) -> Catalogue:
    """Read our file and the operator's, once per process; the operator's names and patterns come before ours.

    Raises:
        NotReady: the operator's file is missing or malformed; the message says where.
    """
    ours, theirs = _read(OUR_FILE).entries(), _read(extra).entries() if extra is not None else {}
    entries = {**theirs, **{name: offer for name, offer in ours.items() if name not in theirs}}
    return Catalogue(
        models={name: offer for name, offer in entries.items() if not _is_pattern(name)},
        patterns={name: offer for name, offer in entries.items() if _is_pattern(name)},
    )


def unlisted_offer(path: str, *, is_async: bool) -> Offer:
    """Return an offer for a model that no catalogue lists: as it was asked for, in every region, one at a time.

    Raises:
        InvalidParameter: this is no service path.

    >>> unlisted_offer("aigc/new/generation", is_async=True).async_path_in("cn-beijing")
    'aigc/new/generation'
    >>> unlisted_offer("aigc/new/generation", is_async=True).sync_path_in("cn-beijing") is None
    True
    >>> unlisted_offer("../tasks/1/cancel", is_async=False)
    Traceback (most recent call last):
    app.errors.InvalidParameter: url error, please check url: this is no service path.
    """
    if re.fullmatch(PLAIN_PATH, path) is None:
        raise InvalidParameter("url error, please check url: this is no service path.")
    paths = {"path": path} if is_async else {"sync_path": path}
    return Offer(regions={}, elsewhere=UNLISTED_LIMITS, **paths)


def unit_of(catalogue: Catalogue, model: str) -> str:
    """Return what a model's tasks are counted in; a model that is not in the catalogue is counted in images.

    >>> [unit_of(load_catalogue(None), model) for model in ("wan2.6-image", "wan2.6-t2v", "paraformer-v2", "gone")]
    ['image', 'video_second', 'audio_second', 'image']
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
    asked = parameters.get(rule.parameter) if rule.parameter else None
    return asked if type(asked) is int and 0 < asked <= MOST_ASKED else rule.default


def _is_pattern(name: str) -> bool:
    return not WILDCARDS.isdisjoint(name)


def _read(path: Path) -> CatalogueFile:
    try:
        return CatalogueFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise NotReady("E05", f"the catalogue file {path.name} cannot be used", str(error)) from error
