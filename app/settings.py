"""Every setting: one class, prefix DASHGATE_, each typed, bounded and described, its unit in its name.

The only place that reads the environment; `resources.py` is the only reader of this class. A secret may also come
from a file named by the same setting with `_FILE` behind it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DAY_SECONDS = 86_400
MIB = 1024 * 1024


def _known_zone(name: str) -> str:
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no such time zone: {name}") from None


def _without_slash(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return url.rstrip("/")


def _host_and_port(listen: str | None) -> str | None:
    if listen is None:
        return None
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT")
    return listen


class Settings(BaseSettings):
    """The settings of one process, read once at its start."""

    model_config = SettingsConfigDict(env_prefix="DASHGATE_", extra="ignore", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "production"] = Field(
        "development", description="production: the simulator refuses to start"
    )
    database_url: SecretStr | None = Field(None, description="postgresql://…, Postgres 15 or newer")
    database_url_file: Path | None = Field(None, description="a file that holds the database URL")
    database_pool_size: int = Field(10, ge=2, le=200, description="connections per process")
    redis_url: SecretStr | None = Field(None, description="redis://…; optional: without it everything works, slower")
    embedded: bool = Field(False, description="run a Postgres of our own in the state directory")
    secret_key: SecretStr | None = Field(
        None, min_length=32, description="encrypts keys and bodies, signs links and API keys; keep it with your backups"
    )
    secret_key_file: Path | None = Field(None, description="a file that holds the secret key")
    admin_token: SecretStr | None = Field(
        None, min_length=16, description="the operators' token for /admin, /metrics and the full /readyz"
    )
    admin_token_file: Path | None = Field(None, description="a file that holds the operators' token")
    public_url: Annotated[str, AfterValidator(_without_slash)] = Field(
        "http://127.0.0.1:8080",
        description="the address under which teams reach this gateway",
    )
    operators_listen: Annotated[str, AfterValidator(_host_and_port)] = Field(
        "127.0.0.1:8081", description="HOST:PORT of the operators' surface with `--surface all`"
    )
    worker_listen: Annotated[str | None, AfterValidator(_host_and_port)] = Field(
        None, description="HOST:PORT of a worker's own /livez, /readyz and /metrics; none unless set"
    )
    state_dir: Path = Field(Path(".dashgate"), description="where an embedded server and the demo keep their files")
    catalogue_file: Path | None = Field(None, description="a TOML file of more models")
    billing_timezone: Annotated[str, AfterValidator(_known_zone)] = Field(
        "Asia/Shanghai", description="the zone whose days and months are billed; Alibaba's"
    )
    body_limit_bytes: int = Field(64 * MIB, ge=1024, le=512 * MIB, description="the largest request body")
    upload_limit_bytes: int = Field(
        1024 * MIB, ge=MIB, le=10 * 1024 * MIB, description="the largest file passed on to the upstream's upload"
    )
    inline_wait_seconds: float = Field(10, gt=0, le=60, description="how long a create waits for the upstream's answer")
    call_timeout_seconds: float = Field(30, gt=0, le=300, description="when a create call to the upstream is given up")
    relay_timeout_seconds: float = Field(620, gt=0, le=3600, description="when a synchronous upstream call is given up")
    sync_wait_seconds: float = Field(
        60, ge=0, le=600, description="how long a synchronous call waits for room upstream"
    )
    durable_wait_seconds: float = Field(
        620, gt=0, le=3600, description="how long a synchronous call that runs as a task is waited for"
    )
    drain_seconds: float = Field(
        650, ge=0, le=7200, description="how long a stopping process lets synchronous calls end"
    )
    idempotency_days: int = Field(7, ge=1, le=90, description="how long an Idempotency-Key stands for its task")
    queue_deadline_seconds: int = Field(DAY_SECONDS, ge=1, le=7 * DAY_SECONDS, description="how long a task may wait")
    doubtful_deadline_seconds: int = Field(
        DAY_SECONDS, ge=1, le=7 * DAY_SECONDS, description="when a task of unknown outcome is given up"
    )
    upstream_retention_seconds: int = Field(
        DAY_SECONDS, ge=60, le=7 * DAY_SECONDS, description="how long the upstream remembers a task"
    )
    delivery_grace_seconds: int = Field(120, ge=0, le=3600, description="the longest a task waits for its files")
    poll_calls_per_second: float = Field(18, gt=0, le=1000, description="task calls a second per main account")
    account_lease_seconds: float = Field(15, ge=2, le=300, description="how soon a dead owner is replaced")
    delivery_lease_seconds: float = Field(60, ge=2, le=3600, description="how soon a dead worker's file is taken up")
    link_life_seconds: int = Field(
        7 * DAY_SECONDS, ge=3600, le=30 * DAY_SECONDS, description="the life of an asset link"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least severe line shown")
    demo_account_key: SecretStr | None = Field(None, description="the demo then uses the real upstream")
    demo_region: str | None = Field(None, description="the region of the demo's upstream key, e.g. cn-beijing")

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: Any) -> Any:
        """Fill a secret from its `_FILE` setting; a missing file is an error, not an empty secret."""
        for name in ("database_url", "secret_key", "admin_token"):
            path = values.get(f"{name}_file")
            if path and not values.get(name):
                values[name] = Path(path).read_text(encoding="utf-8").strip()
        return values

    @model_validator(mode="after")
    def _demo_is_whole(self) -> Self:
        if self.demo_account_key is not None and self.demo_region is None:
            raise ValueError("DASHGATE_DEMO_ACCOUNT_KEY needs DASHGATE_DEMO_REGION")
        return self

    @property
    def billing_zone(self) -> ZoneInfo:
        """The billing time zone itself."""
        return ZoneInfo(self.billing_timezone)


def masked(settings: Settings) -> dict[str, str]:
    """Return every setting as text for the boot log; secrets show only whether they are set."""
    return {name: str(value) for name, value in settings.model_dump().items() if value is not None}
