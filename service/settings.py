"""Every choice an operator has, typed, with its unit and the reason for its default. Read once, at start.

Each field is an environment variable: GLYPHREC_ and its name in capitals. REDIS_URL is understood too.
"""

import difflib
import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.core.filters import DeclaredFields
from service.core.keys import hashed
from service.errors import GlyphrecError

PREFIX = "GLYPHREC_"
CLIENT_KEY = "GLYPHREC_KEY"  # the client commands' own, no setting of the service

Keys = Annotated[tuple[str, ...], NoDecode]  # as hashes (keys.py), however they were given
FilterFields = Annotated[DeclaredFields, NoDecode]


class BadSettings(GlyphrecError):
    """A setting is missing, misspelt or out of its range."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", populate_by_name=True)

    bundle: Path = Field(description="folder that `glyphrec export --out` wrote")
    bundles_dir: Path | None = Field(
        None, description="folder of bundles that POST /admin/bundles may name; unset: none may be named"
    )
    take_over: bool = Field(
        False,
        description="start with `bundle` also where POST /admin/bundles has made another tokenizer the one "
        "that all replicas serve, and make it that",
    )
    reread_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="share of the time that reading the catalogue for a new tokenizer may work; it also "
        "waits for items being posted",
    )
    join_timeout_s: float = Field(
        600, gt=0, description="seconds that a change of the tokenizer waits for replicas to load the bundle"
    )
    keep_old_codes_s: int = Field(
        7 * 86_400,
        ge=0,
        description="seconds until the codes of a tokenizer that is no longer served are deleted; going "
        "back to it later reads the catalogue again",
    )
    host: str = Field(
        "127.0.0.1", description="address to listen on; only this machine unless asked otherwise"
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")

    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("GLYPHREC_REDIS_URL", "REDIS_URL"),
        pattern=r"^(rediss?|unix)://.+",
        repr=False,  # it may hold a password
        description="redis://, rediss:// or unix://; unset starts an embedded server under `data_dir`",
    )
    data_dir: Path = Field(Path(".glyphrec/redis"), description="where the embedded Redis keeps its files")
    catalog: str = Field(
        "glyphrec",
        pattern=r"^[A-Za-z0-9._:-]{1,64}$",
        description="name of the catalogue: replicas with the same name and Redis serve the same items",
    )
    log_length: int = Field(
        100_000,
        ge=1,
        description="changes that Redis keeps for replicas to follow; one further behind loads everything",
    )
    seed_catalog: bool = Field(True, description="put the bundle's items into a catalogue that is new")

    read_keys: Keys = Field(
        (), repr=False, description="keys that may read: several, plain or as `sha256:…`, separated by commas"
    )
    api_keys: Keys = Field((), repr=False, description="keys that may read and write, given as `read_keys`")
    admin_keys: Keys = Field(
        (),
        repr=False,
        description="keys that may do everything, also under /admin/, which nobody may without",
    )
    allow_anonymous: bool = Field(
        False, description="serve without keys also beyond loopback, where a proxy in front asks for them"
    )

    threads: int = Field(
        default_factory=lambda: max(1, (os.cpu_count() or 2) // 2),
        ge=1,
        description="ONNX Runtime threads of each of the two graphs; half the cores, as both may run at once",
    )
    num_beams: int = Field(
        50,
        ge=1,
        le=10_000,
        description="beams of a search that nobody asked to widen; more are slower, rarely better",
    )
    max_batch_beams: int | None = Field(
        None,
        ge=1,
        description="beams in one run of the recommender. By default 800 on a CPU, 16 requests of 50 beams: "
        "more only wait for each other there; 12800 on a GPU, where more are cheaper",
    )
    max_queued_beams: int = Field(
        25_600,
        ge=1,
        description="beams waiting before 429 is answered; 512 requests of 50 beams are about a second",
    )
    max_wait_ms: float = Field(
        20,
        gt=0,
        description="milliseconds that a recommendation may have to wait, reckoned from what batches took "
        "lately, before 429 is answered; the next batch takes what it can hold, however long it waits",
    )
    max_batch_strips: int = Field(
        32,
        ge=1,
        description="strips in one run of the tokenizer; more gain nothing on a CPU and delay single items",
    )
    max_queued_strips: int = Field(4_096, ge=1, description="strips waiting before 429 is answered")
    filter_fields: FilterFields = Field(
        DeclaredFields(),
        description="item fields that filters may name, and their kinds: "
        "brand:text,price:number,refurbished:boolean; each costs 4 or 8 bytes an item, and a new value reads "
        "the item again where the bundle's render.fields draw the field",
    )
    max_view_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="memory of all cached filter views, 128 at most; one takes 2 MiB at three levels of 256, "
        "but 66 MiB at four, where this should be raised to hold the filters that are in use",
    )
    recommend_timeout_s: float = Field(
        10, gt=0, description="seconds until a recommendation is given up with 503"
    )
    index_timeout_s: float = Field(
        600,
        gt=0,
        description="seconds until POST /items is given up; 1,000 long texts take minutes on one core",
    )

    max_body_bytes: int = Field(
        8 * 2**20, ge=1_024, description="bytes of a request body; 1,000 items of 8 KiB each"
    )
    max_connections: int = Field(
        1_000,
        ge=1,
        description="open connections; one more is answered 503 and closed. Each takes a file of the process",
    )
    head_timeout_s: float = Field(
        10, gt=0, description="seconds that a connection has to say what it wants, until it is closed"
    )
    body_timeout_s: float = Field(
        30,
        gt=0,
        description="seconds to wait for the next part of a request body, or to catch up with 4 KiB/s",
    )
    max_items_per_request: int = Field(1_000, ge=1, le=10_000, description="items in one POST /items")
    max_item_chars: int = Field(
        20_000, ge=1, description="characters of one item, all fields; far more than its picture can show"
    )
    stop_delay_s: float = Field(
        1,
        ge=0,
        description="seconds between SIGTERM, when readiness turns off, and the end of new connections; as "
        "long as a load balancer needs to notice",
    )
    shutdown_timeout_s: int = Field(10, ge=1, description="seconds that requests in flight have at shutdown")
    remembered_pages: int = Field(
        100_000,
        ge=0,
        description="pages of this replica that POST /events can be about; about 200 bytes each. 0: none, so "
        "the live quality of this replica is not measured",
    )
    attribution_s: float = Field(
        1_800,
        gt=0,
        description="seconds after a page within which what is taken counts as taken from it; event ids are "
        "known again for twice as long",
    )
    log_format: Literal["text", "json"] = Field("text", description="json: one object a line, for machines")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="of the log on stderr"
    )
    tracing: bool = Field(
        False,
        description="send a span of each request and of its stages by OTLP over HTTP, to where "
        "OTEL_EXPORTER_OTLP_ENDPOINT says; needs glyphrec[otel]",
    )
    access_log: bool = Field(False, description="one log line per request; the metrics count them anyway")

    @field_validator("read_keys", "api_keys", "admin_keys", mode="before")
    @classmethod
    def _split(cls, keys: Any) -> Any:
        if isinstance(keys, str):
            keys = [key.strip() for key in keys.split(",") if key.strip()]
        return tuple(keys)

    @field_validator("read_keys", "api_keys", "admin_keys")
    @classmethod
    def _hashed(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(hashed, keys))

    @field_validator("filter_fields", mode="before")
    @classmethod
    def _declared(cls, fields: Any) -> Any:
        return DeclaredFields.parse(fields) if isinstance(fields, str) else fields

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        keys = [*self.read_keys, *self.api_keys, *self.admin_keys]
        if len(keys) != len(set(keys)):
            raise ValueError("a key is given twice among read_keys, api_keys and admin_keys; leave it in one")
        guarded = bool(keys)
        if not (guarded or self.allow_anonymous or _is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} is open to others and no key is set. Set {PREFIX}API_KEYS, "
                f"or {PREFIX}ALLOW_ANONYMOUS=true where a proxy in front asks for keys"
            )
        return self


def load_settings(**given: Any) -> Settings:
    """Settings from the environment; what is `given` and not None goes before it. Raises BadSettings."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CLIENT_KEY}
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise BadSettings(f"{variable}: glyphrec has no such setting.{hint}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise BadSettings(
            "; ".join(_sentence(detail) for detail in error.errors(include_input=False))
        ) from None


def _sentence(detail: Any) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    variable = name if name.isupper() else PREFIX + name.upper()
    return f"{variable}: {'not set' if detail['type'] == 'missing' else message}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
