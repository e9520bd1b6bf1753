"""Every choice of an operator: typed, with its unit and the reason for its default. Read once, at the start.

Each field is an environment variable: GLYPHREC_ and its name in capitals. REDIS_URL is accepted too. An empty
variable counts as not set, because deployment tools cannot leave a variable out. Keys and the URL of Redis
may also come from a file, which the variable with the ending _FILE names (core/secret_files.py).
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.core.addresses import is_loopback
from service.core.cpus import usable_cpus
from service.core.filters import DeclaredFields
from service.core.keys import hashed
from service.core.limits import MAX_ITEM_CHARS, MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS
from service.core.redis_url import checked_redis_url
from service.core.secret_files import FILE_VARIABLES, secrets_of_files
from service.core.service_links import is_service_link, without_service_links
from service.errors import GlyphrecError

PREFIX = "GLYPHREC_"
PATH_PREFIX = r"(/[A-Za-z0-9._~-]+){1,20}"
CLIENT_KEY = "GLYPHREC_KEY"  # of the client commands; not a setting of the service

ClientKeys = Annotated[tuple[str, ...], NoDecode]  # kept as hashes (core/keys.py), however they are given
FilterFields = Annotated[DeclaredFields, NoDecode]


def default_threads(num_workers: int = 1) -> int:
    """Half of a worker's share of the processors that this service may use, at least 1."""
    return max(1, int(usable_cpus().num_cpus / num_workers / 2))


class BadSettings(GlyphrecError):
    """A setting is missing, misspelled or out of range."""


class Settings(BaseSettings):
    """All settings of the service. Its parts get single values of it, never the whole."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,  # an infinite timeout breaks the arithmetic of timers and of Redis
    )

    # --- models ---

    bundle: Path = Field(description="folder of the bundle to serve, as `glyphrec export --out` wrote it")
    bundles_dir: Path | None = Field(
        None,
        description="folder whose bundles POST /admin/bundles may name. Unset: it may name none, as only the "
        "operator knows which folder holds bundles",
    )
    take_over: bool = Field(
        False,
        description="start with `bundle`, read all items of the catalog with it, and make its tokenizer the "
        "active one for all replicas, whatever they serve. Without it, a start does so only with a newer "
        "export of the same shop, and only if POST /admin/bundles was never used. Off, so that a forgotten "
        "replica does not undo a change, and the bundle of another shop does not take the catalog over",
    )
    reread_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="share of the time, up to 1, in which the items are read for a new tokenizer. A quarter "
        "leaves most of the machine to requests; reading also waits for posted items",
    )
    join_timeout_s: float = Field(
        600,
        gt=0,
        description="seconds that a change of the tokenizer waits for replicas to load the new catalog. Long "
        "enough for a large catalog; a replica that needs longer follows later",
    )
    keep_old_codes_s: int = Field(
        7 * 86_400,
        ge=0,
        description="seconds until the codes of a replaced tokenizer are deleted. A week, in which a change "
        "back is quick; after that it reads every item again",
    )

    # --- the network ---

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address or name to listen on; `::` stands for all addresses of IPv6 and IPv4. By "
        "default only this machine can connect; any other address needs keys, or `allow_anonymous`",
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    unix_socket: Path | None = Field(
        None,
        description="socket of the file system to listen on, in place of `host` and `port`, for a proxy on "
        "the same machine. Everybody here may connect whom its folder lets in, as with 127.0.0.1",
    )

    path_prefix: str = Field(
        "",
        pattern=rf"^({PATH_PREFIX})?$",
        description="path below which a proxy serves this service and which it takes away, for example "
        "/recommender. Only the API's description needs it. Unset: what the proxy sends as "
        "X-Forwarded-Prefix",
    )

    # --- Redis and the catalog ---

    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("GLYPHREC_REDIS_URL", "REDIS_URL"),
        repr=False,  # it may hold a password
        description="URL of Redis: redis://, rediss:// or unix://. Unset: the service starts a server of its "
        "own, which keeps its files in `data_dir`",
    )
    data_dir: Path = Field(
        Path(".glyphrec/redis"),
        description="folder for the files of the server that starts if `redis_url` is unset. By default it "
        "lies below the working directory, so that each project has its own items",
    )
    catalog: str = Field(
        "glyphrec",
        pattern=r"^[A-Za-z0-9._:-]{1,64}$",
        description="name of the catalog. Replicas with the same name and the same Redis serve the same "
        "items. Several catalogs can share one Redis; the default is for the only one. A start with the "
        "bundle of another shop is refused",
    )
    log_length: int = Field(
        100_000,
        ge=1,
        description="changes of the catalog that Redis keeps for replicas to follow. A replica that falls "
        "further behind loads the whole catalog again. An entry takes some hundred bytes",
    )
    seed_catalog: bool = Field(
        True,
        description="put the bundle's items into a catalog that is new: Redis has nothing of it. On, so that "
        "a first start can recommend; turn it off if all items come from POST /items",
    )

    search: bool = Field(
        True,
        description="keep a vector of each item, so that POST /search finds items by a text or a picture. "
        "Turn it off to save the memory (docs/operations.md). All replicas of a catalog need the same value",
    )
    remembered_queries: int = Field(
        4_096, ge=0, description="texts of POST /search that are not read again; each takes about 1 kB"
    )

    # --- learning from events ---

    learn: bool = Field(
        True,
        description="count the items that POST /events reports, together with the histories of their pages, "
        "so that later answers follow. On, as all replicas share the counts and old ones fade. Turn it off "
        "if events may not move recommendations",
    )
    count_half_life_days: float = Field(
        90,
        ge=1,
        description="days until a count has half its weight. A season: what is bought together changes with "
        "it, and rare items need that long to be counted. The same for all replicas of a catalog",
    )

    # --- who may do what ---

    read_keys: ClientKeys = Field(
        (),
        repr=False,
        description="keys that may read. Several are separated by commas; each is plain, or its hash as "
        "`sha256:…`",
    )
    api_keys: ClientKeys = Field(
        (), repr=False, description="keys that may read and write, in the form of `read_keys`"
    )
    admin_keys: ClientKeys = Field(
        (),
        repr=False,
        description="keys that may do everything, in the form of `read_keys`. Routes under /admin/ need one; "
        "without any such key nobody may use these routes",
    )
    allow_anonymous: bool = Field(
        False,
        description="accept requests without a key also if other machines can connect. Off, as this is safe "
        "only behind a proxy that checks keys itself",
    )

    # --- processes and threads ---

    workers: int = Field(
        1,
        ge=1,
        le=1_024,
        description="processes that share the port. Each is a whole replica with its own models, catalog and "
        "queues, so each takes the memory of one. One process computes on several processors, but its event "
        "loop is on one at a time; docs/operations.md says when more of them help",
    )
    threads: int = Field(
        default_factory=lambda given: default_threads(given.get("workers", 1)),
        ge=1,
        le=1_024,
        description="ONNX Runtime threads of each graph, in each worker. By default half of a "
        "worker's share of the processors that this service may use (its affinity and the quota of its "
        "container), as two graphs may run at once",
    )

    # --- the models' queues ---

    num_beams: int = Field(
        50,
        ge=1,
        le=10_000,
        description="beams of a search that no request asked to widen. More beams are slower and rarely find "
        "better items",
    )
    max_batch_beams: int | None = Field(
        None,
        ge=1,
        description="beams in one run of the recommender. Unset: 800 on a CPU, which are 16 requests of 50 "
        "beams (a larger batch is not faster there), and 12800 on a GPU",
    )
    max_queued_beams: int = Field(
        25_600,
        ge=1,
        description="beams that may wait in the queue before a request is refused with 429. The default is "
        "512 requests of 50 beams, about a second of work. As many items may wait in the queue of POST /rank",
    )
    max_wait_ms: float = Field(
        20,
        gt=0,
        description="milliseconds that a recommendation may be expected to wait in the queue; one that would "
        "wait longer is refused with 429. The expectation comes from the measured time of recent batches. A "
        "request that fits into the next batch is never refused. 20 ms are a few batches on a CPU",
    )
    max_batch_strips: int = Field(
        32,
        ge=1,
        description="strips, of which an item has a few, in one run of the tokenizer. More are not faster "
        "on a CPU, and delay single items",
    )
    max_queued_strips: int = Field(
        4_096,
        ge=1,
        description="strips that may wait in the queue before an item is refused with 429. The default holds "
        "about 800 items of five strips",
    )
    filter_fields: FilterFields = Field(
        DeclaredFields(),
        description="item fields that filters may name, with their kinds, for example "
        "brand:text,price:number,refurbished:boolean. None by default, as each field costs 4 or 8 bytes an "
        "item. If the bundle's render.fields draw such a field, a new value reads the item again",
    )
    max_view_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="bytes of memory for the cached tables of filters, of which there are at most 128. One "
        "table takes 2 MiB with three levels of 256 codes, so the default holds all 128. It takes 66 MiB "
        "with four levels; raise the value there to hold the filters that are in use",
    )
    recommend_timeout_s: float = Field(
        10,
        gt=0,
        description="seconds until a recommendation is given up with 503. Far more than a search takes, so "
        "that only a stuck one reaches it",
    )
    index_timeout_s: float = Field(
        600,
        gt=0,
        description="seconds until POST /items is given up. 1,000 long texts take minutes on one core",
    )

    explorer: bool = Field(
        True,
        description="serve the explorer at /, a page that shows the catalog, its codes and how a search "
        "goes. On, as what it shows needs a read key where keys are set; turn it off where nobody looks",
    )

    # --- bounds of HTTP ---

    max_body_bytes: int = Field(
        16 * 2**20,
        ge=1_024,
        description="bytes of a request body. The default holds 1,000 items of 16 KiB, or the largest "
        "picture that is allowed by default, as base64",
    )
    max_connections: int = Field(
        1_000,
        ge=1,
        description="open connections of each worker. At this number, a new one takes the place of the one "
        "that has been idle for longest, at least 5 s. If all are in use, it is answered 503 and closed, "
        "unless it is a health check or a scrape of metrics. Each takes one of the process's open files, so "
        "the start raises their number as far as the system allows",
    )
    keep_alive_s: float = Field(
        100,
        gt=0,
        description="seconds that a connection may be idle before it is closed. It must be longer than any "
        "client or load balancer in front keeps an idle connection, or a request may meet a connection that "
        "is being closed. Most balancers keep theirs for 60 s, Go's clients for 90 s",
    )
    head_timeout_s: float = Field(
        10,
        gt=0,
        description="seconds that a connection has to send the head of its first request, or the head of a "
        "later one after its first byte, before it is closed. Enough for slow networks, too short to hold "
        "connections open cheaply",
    )
    body_timeout_s: float = Field(
        30,
        gt=0,
        description="seconds to wait for the next part of a request body. A body slower than 4 KiB/s has as "
        "many seconds to catch up. Slow networks pause for less",
    )
    max_items_per_request: int = Field(
        1_000,
        ge=1,
        le=10_000,
        description="items in one POST /items. More gain no speed, and one answer would take very long",
    )
    max_item_chars: int = Field(
        MAX_ITEM_CHARS,
        ge=1,
        description="characters of one item, all its fields together. Far more than its picture can show",
    )
    max_picture_bytes: int = Field(
        MAX_PICTURE_BYTES,
        ge=1_024,
        description="bytes of one picture as it is sent. Photos of cameras have less; `max_body_bytes` must "
        "hold a third more for a picture in JSON",
    )
    max_picture_pixels: int = Field(
        MAX_PICTURE_PIXELS,
        ge=1_024,
        le=100_000_000,
        description="pixels of one picture, width times height. While it is decoded in one of "
        "`picture_threads`, a PNG or WebP takes up to 20 bytes a pixel, and a JPEG 3. The default holds "
        "photos of 24 megapixels",
    )
    picture_threads: int = Field(
        default_factory=lambda given: min(default_threads(given.get("workers", 1)), 4),
        ge=1,
        le=64,
        description="pictures that are decoded at the same time. By default half of the processors, as the "
        "tokenizer needs the others, and at most 4, as each takes memory",
    )
    picture_timeout_s: float = Field(
        10,
        gt=0,
        description="seconds until a picture that is being decoded is given up and refused. Far more than a "
        "photo takes, so that only a hostile one reaches it",
    )
    stop_delay_s: float = Field(
        1,
        ge=0,
        description="seconds from SIGTERM, which turns readiness off, until no new connections are accepted. "
        "A load balancer that checks more slowly needs more",
    )
    shutdown_timeout_s: int = Field(
        10,
        ge=1,
        description="seconds that requests in flight have to end at shutdown. As long as a recommendation "
        "may take",
    )

    # --- what is measured and told ---

    remembered_pages: int = Field(
        100_000,
        ge=0,
        description="answered pages that this replica remembers, so that POST /events can name them; each "
        "takes about 630 bytes. With 0 it remembers none, measures no live quality and learns nothing",
    )
    attribution_s: float = Field(
        1_800,
        gt=0,
        description="seconds after an answered page in which an event counts as caused by it. Half an "
        "hour is a usual length of a visit. Ids of events are remembered for twice as long",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="format of the log: text for people, json with one object a line for machines"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        description="least severe level that is written to the log, on stderr. INFO tells of starts, changes "
        "and lost connections, not of requests",
    )
    tracing: bool = Field(
        False,
        description="send a span for each request and its stages by OTLP over HTTP to "
        "OTEL_EXPORTER_OTLP_ENDPOINT. Off, as it needs glyphrec[otel] and a collector",
    )
    access_log: bool = Field(
        False,
        description="write one log line per request, except for probes and scrapes that succeed. Off, as the "
        "metrics count requests anyway",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the name and the arguments are of pydantic-settings
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment with secrets from their files, without what Kubernetes adds."""
        assert isinstance(env_settings, EnvSettingsSource)
        try:
            secrets = secrets_of_files(os.environ)
        except ValueError as error:
            raise BadSettings(str(error)) from error
        of_files = {
            name.lower(): value for name, value in secrets.items()
        }  # as pydantic-settings spells them
        env_settings.env_vars = without_service_links(env_settings.env_vars) | of_files
        return init_settings, env_settings

    @field_validator("read_keys", "api_keys", "admin_keys", mode="before")
    @classmethod
    def _split(cls, keys: Any) -> Any:
        if isinstance(keys, str):
            keys = [key.strip() for key in keys.replace("\n", ",").split(",") if key.strip()]
        return tuple(keys)

    @field_validator("read_keys", "api_keys", "admin_keys")
    @classmethod
    def _hashed(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(hashed, keys))

    @field_validator("redis_url")
    @classmethod
    def _understood(cls, url: str | None) -> str | None:
        return None if url is None else checked_redis_url(url)

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, level: Any) -> Any:
        return level.upper() if isinstance(level, str) else level

    @field_validator("log_format", mode="before")
    @classmethod
    def _in_small_letters(cls, form: Any) -> Any:
        return form.lower() if isinstance(form, str) else form

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
        is_private = self.unix_socket is not None or is_loopback(self.host)
        if not (guarded or self.allow_anonymous or is_private):
            raise ValueError(
                f"host {self.host} is open to others and no key is set. Set {PREFIX}API_KEYS, "
                f"or {PREFIX}ALLOW_ANONYMOUS=true where a proxy in front asks for keys"
            )
        return self


def load_settings(**given: Any) -> Settings:
    """Settings from the environment. A `given` value other than None takes precedence. Raises BadSettings."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CLIENT_KEY} | FILE_VARIABLES
    for variable, value in sorted(os.environ.items()):
        if variable.startswith(PREFIX) and variable not in known and not is_service_link(variable, value):
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise BadSettings(f"{variable}: glyphrec has no such setting.{hint}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        details = error.errors(include_input=False)
        unknown = "default_factory_not_called"  # a default that needs a setting with an error of its own
        raise BadSettings("; ".join(_sentence(each) for each in details if each["type"] != unknown)) from None


def _sentence(detail: Any) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    variable = name if name.isupper() else PREFIX + name.upper()
    return f"{variable}: {'not set' if detail['type'] == 'missing' else message}"
