"""The upstream's regions: data to propose a base URL from. An account's own base URL always wins."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

OUR_FILE = Path(__file__).with_name("regions.toml")
WORKSPACE_HOST = "{workspace}.{region}.maas.aliyuncs.com"
# Seen so far: llm-…, ws-…, ws_…. Nothing else may become part of a host name.
WORKSPACE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class Region(BaseModel):
    """One region: the hosts it answers at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    host: str | None = None
    workspaces: bool
    trial: str | None = None
    documented: bool = True


@cache
def load_regions() -> Mapping[str, Region]:
    """Read the regions, by their ids, once per process."""
    return TypeAdapter(dict[str, Region]).validate_python(tomllib.loads(OUR_FILE.read_text(encoding="utf-8")))


def default_base_url(region: str, workspace: str | None) -> str | None:
    """Return the native base URL to propose: the workspace's own host where there is a workspace, else the shared one.

    None: the region is not known, or it answers at workspace hosts only and no usable workspace is named.

    >>> default_base_url("ap-southeast-1", None)
    'https://dashscope-intl.aliyuncs.com/api/v1'
    >>> default_base_url("eu-central-1", "ws-1a2b")
    'https://ws-1a2b.eu-central-1.maas.aliyuncs.com/api/v1'
    >>> default_base_url("eu-central-1", None) is default_base_url("nowhere", "ws-1a2b") is None
    True
    """
    known = load_regions().get(region)
    if known is None:
        return None
    host = known.host
    if workspace is not None and known.workspaces:
        is_id = WORKSPACE_ID.fullmatch(workspace) is not None
        host = WORKSPACE_HOST.format(workspace=workspace, region=region) if is_id else None
    return f"https://{host}/api/v1" if host is not None else None
