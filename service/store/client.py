"""How the store calls Redis: calls end and are counted, errors are for clients, scripts run by hash."""

import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from service.core.redis_url import (
    AT_THE_PRIMARY,
    ONLY_WITHOUT_A_CLUSTER,
    check_certificates,
    checked_redis_url,
)
from service.errors import ServiceError, StoreFault, StoreUnavailable, WrongRedisUrl

log = logging.getLogger(__name__)

RESPONSE_TIMEOUT_S = 2.0  # for one reply; a blocking read must ask for less
NUM_CONNECTIONS = 32  # further callers wait for one
CLUSTER_CONNECTIONS = 512  # to each node; further callers are refused, as its pool cannot wait
PIPELINE_LENGTH = 250  # calls in one round trip; packing them blocks the event loop for a few ms
CLIENT_NAME = "glyphrec"  # in CLIENT LIST
LUA = Path(__file__).parent / "lua"

T = TypeVar("T")

# Called after each round trip with its command or script, the number of calls that succeeded, the number that
# failed, and the duration in seconds; None if the call waited for something to happen.
Observe = Callable[[str, int, int, float | None], None]

# By redis-py's class if it has one, else by the first word of Redis' reply.
_REFUSED_FOR_NOW: dict[type[RedisError] | str, str] = {
    AuthenticationError: "Redis refuses the password in REDIS_URL.",
    BusyLoadingError: "Redis is still loading its data.",
    OutOfMemoryError: "Redis is out of memory: delete items or raise its maxmemory.",
    ReadOnlyError: "This Redis is a read-only copy; a failover may be under way.",
    MasterDownError: "This Redis has lost its primary.",
    ClusterDownError: "The Redis cluster is down.",
    TryAgainError: "The Redis cluster is moving the catalog's keys.",
    "MISCONF": "Redis cannot write to its disk.",
    "NOREPLICAS": "Redis has lost the replicas that it must write to.",
    "BUSY": "Redis is busy with another program's script.",
    "max number of clients": "Redis has as many clients as its maxclients allows.",
    "DENIED": (
        "Redis takes clients of other machines only with a password (protected mode). Give it one, and write "
        "it into REDIS_URL."
    ),
}


# By words of OpenSSL, the more special ones first.
_REFUSED_BY_TLS = {
    "certificate is not valid for": (
        "Redis' certificate is for another name than the host in REDIS_URL. Use the name of the certificate "
        "there, or have one issued for this host."
    ),
    "certificate has expired": "Redis' certificate has expired. Renew it.",
    "CERTIFICATE_VERIFY_FAILED": (
        "Redis' certificate is not trusted. Name its authority with ?ssl_ca_certs=… in REDIS_URL."
    ),
    "WRONG_VERSION_NUMBER": (
        "REDIS_URL says rediss://, but its port does not speak TLS. Use redis://, or the port with TLS."
    ),
}


def _unobserved(_command: str, _num_ok: int, _num_errors: int, _seconds: float | None) -> None:
    pass


class _Observed:
    """Reports every command outside a pipeline to `observe`. `observing` reports pipelines."""

    observe: Observe = staticmethod(_unobserved)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        command = str(args[0]).lower()
        waits = "BLOCK" in args or b"BLOCK" in args
        with observing(self, command, is_timed=not waits):
            return await super().execute_command(*args, **options)  # type: ignore[misc]  # of the other base class


# Both base classes of redis-py have a method that they declare differently.
class _Client(_Observed, Redis):  # type: ignore[misc]
    pass


class _ClusterClient(_Observed, RedisCluster):  # type: ignore[misc]
    pass


@contextmanager
def observing(redis: Any, command: str, num_calls: int = 1, *, is_timed: bool = True) -> Iterator[None]:
    """Surrounds one round trip. It counts as failed if it raises."""
    observe: Observe = getattr(redis, "observe", _unobserved)
    started_at = perf_counter()
    try:
        yield
    except Exception as error:
        num_ok = num_calls if "no such key" in str(error) else 0  # this is an answer
        observe(command, num_ok, num_calls - num_ok, perf_counter() - started_at if is_timed else None)
        raise
    observe(command, num_calls, 0, perf_counter() - started_at if is_timed else None)


def connect(
    url: str, *, response_timeout_s: float = RESPONSE_TIMEOUT_S, observe: Observe = _unobserved
) -> Redis:
    """A client of one server, with a timeout for every reply. Close it with aclose().

    Raises WrongRedisUrl for a URL that cannot be right.
    """
    try:
        url = checked_redis_url(url)
        check_certificates(url)
    except ValueError as error:
        raise WrongRedisUrl(str(error)) from error
    pool = BlockingConnectionPool.from_url(
        url,
        protocol=2,
        max_connections=NUM_CONNECTIONS,
        timeout=response_timeout_s,
        socket_timeout=response_timeout_s,
        socket_connect_timeout=response_timeout_s,
        retry=_one_retry(),
        redis_connect_func=_introduce,
        driver_info=None,  # a second write would hide why the server refuses the connection
    )
    redis = _Client.from_pool(pool)
    assert isinstance(redis, _Client)  # its annotation says otherwise
    redis.observe = observe
    return redis


async def _introduce(connection: Any) -> None:
    """Greet the server as redis-py does, and tell it our name, which a user may be forbidden to do."""
    await connection.on_connect()
    await connection.send_command("CLIENT", "SETNAME", CLIENT_NAME, check_health=False)
    try:
        await connection.read_response()
    except ResponseError as error:
        if str(error).startswith("DENIED"):  # not the name, but the whole connection
            raise


async def hash_pages(redis: Any, key: str, count: int) -> AsyncIterator[dict[bytes, bytes]]:
    """Fields and values of a hash, page by page. A field may come twice. Raises StoreUnavailable."""
    cursor = 0
    while True:
        with redis_errors():
            cursor, page = await redis.hscan(key, cursor, count=count)
        yield page
        if cursor == 0:
            return


async def connect_to_any(url: str, observe: Observe = _unobserved) -> Redis | RedisCluster:
    """A client of the server, or of its cluster if it belongs to one.

    Raises StoreUnavailable, and WrongRedisUrl where no Redis can ever be at the other end.
    """
    redis = connect(url, observe=observe)
    try:
        info = await _about(redis)
        may_tell_name = await _may_tell_name(redis) if info.get("cluster_enabled") else True
    except BaseException:
        await redis.aclose()
        raise
    if not info.get("cluster_enabled"):
        return redis
    await redis.aclose()
    for option in ONLY_WITHOUT_A_CLUSTER:
        if f"{option}=" in url:
            raise WrongRedisUrl(
                f"?{option}= has no use with a Redis Cluster. Use ?ssl_ca_certs= and plain keys"
            )
    if url.startswith("unix://"):
        raise WrongRedisUrl("a node of a Redis Cluster needs an address with a port. Give redis://host:port")
    found = _ClusterClient.from_url(
        url,
        protocol=2,
        max_connections=CLUSTER_CONNECTIONS,
        socket_timeout=RESPONSE_TIMEOUT_S,
        socket_connect_timeout=RESPONSE_TIMEOUT_S,
        retry=_one_retry(),
        client_name=CLIENT_NAME if may_tell_name else None,
        driver_info=None,
    )
    assert isinstance(found, _ClusterClient)
    found.observe = observe
    return found


async def _about(redis: Redis) -> dict[str, Any]:
    """What the server says of itself. Raises WrongRedisUrl for a Sentinel, or without such a database."""
    with redis_errors():
        try:
            server = await redis.info("server")
        except ResponseError as error:
            told = str(error)
            if "unknown command 'SELECT'" in told:  # of the commands of Redis, a Sentinel has few
                raise WrongRedisUrl(f"leads to a Sentinel, which holds no data. {AT_THE_PRIMARY}") from error
            if "SELECT is not allowed in cluster mode" in told:
                raise WrongRedisUrl(
                    "a Redis Cluster has the database 0 alone. Leave the number out"
                ) from error
            if "DB index is out of range" in told:
                raise WrongRedisUrl(
                    "this Redis has no database of that number. Give a smaller one, or raise `databases` of "
                    "the server"
                ) from error
            raise
        if "sentinel" in (server.get("redis_mode"), server.get("server_mode")):  # the second is Valkey's
            raise WrongRedisUrl(f"leads to a Sentinel, which holds no data. {AT_THE_PRIMARY}")
        return {**server, **await redis.info("cluster")}


async def _may_tell_name(redis: Redis) -> bool:
    with redis_errors():
        try:
            await redis.client_setname(CLIENT_NAME)
        except NoPermissionError:
            return False
    return True


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translates redis-py's errors to errors that a client may see. Redis' own words go to the log only."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
        raise translate(error) from error
    except AttributeError as error:
        # Before Python 3.12, the cluster's client may write to a connection that another task just closed.
        if error.name != "writelines":
            raise
        raise translate(error) from error


def translate(error: Exception) -> ServiceError:
    """The service's own error for an error of redis-py, which is logged.

    StoreUnavailable means that a later try may succeed. StoreFault means that Redis rejected the command.
    """
    log.warning("Redis: %s: %s", type(error).__name__, error)
    if isinstance(error, NoPermissionError) or "ACL failure in script" in str(error):
        return StoreUnavailable(_not_permitted(str(error)))
    for kind, reason in _REFUSED_FOR_NOW.items():
        if str(error).startswith(kind) if isinstance(kind, str) else isinstance(error, kind):
            return StoreUnavailable(reason)
    if isinstance(error, ResponseError):
        return StoreFault()
    for words, reason in _REFUSED_BY_TLS.items():
        if words in str(error):
            return StoreUnavailable(reason)
    return StoreUnavailable("Redis does not answer.")


def _not_permitted(told: str) -> str:
    """Which command, or that it is the keys: Redis says `… to run the 'hset' command` in each version."""
    command = re.search(r"'([\w|]{1,40})' command", told)
    what = f"the command {command[1].replace('|', ' ').upper()}" if command else "the keys of the catalog"
    return (
        f"Redis refuses {what} to the user in REDIS_URL. The ACL that the service needs stands in "
        "docs/reliability.md."
    )


def _one_retry() -> Retry:
    """A lost connection is made again at once. A call that timed out is not repeated, to answer in time."""
    return Retry(NoBackoff(), 1, supported_errors=(ConnectionError,))


class Script:
    """One file of lua/, preceded by log.lua. It is called by its hash."""

    def __init__(self, name: str) -> None:
        self._name = name
        parts = [(LUA / file).read_text(encoding="utf-8") for file in ("log.lua", f"{name}.lua")]
        self._source = "\n".join(parts)
        self._sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    async def run(
        self, redis: Redis | RedisCluster, keys: Sequence[str], calls: Sequence[Sequence[Any]]
    ) -> list[Any]:
        """Run once for each of `calls`. A reply is the script's result, or a ServiceError.

        Raises StoreUnavailable if Redis ran none of them.
        """
        replies: list[Any] = []
        for chunk in chunks(calls, PIPELINE_LENGTH):
            try:
                replies += await self._run_chunk(redis, keys, chunk)
            except StoreUnavailable as error:
                replies += [error] * (len(calls) - len(replies))
                break
        if replies and all(isinstance(reply, StoreUnavailable) for reply in replies):
            raise replies[0]
        return replies

    async def _run_chunk(
        self, redis: Redis | RedisCluster, keys: Sequence[str], calls: Sequence[Sequence[Any]]
    ) -> list[Any]:
        observe: Observe = getattr(redis, "observe", _unobserved)
        started_at = perf_counter()
        try:
            replies = await self._try_chunk(redis, keys, calls)
        except ServiceError:
            observe(self._name, 0, len(calls), perf_counter() - started_at)
            raise
        num_errors = sum(isinstance(reply, ServiceError) for reply in replies)
        observe(self._name, len(calls) - num_errors, num_errors, perf_counter() - started_at)
        return replies

    async def _try_chunk(
        self, redis: Redis | RedisCluster, keys: Sequence[str], calls: Sequence[Sequence[Any]]
    ) -> list[Any]:
        replies = await self._evalsha(redis, keys, calls)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # the very first call, or Redis has restarted
            with redis_errors():
                await redis.script_load(self._source)
            again = await self._evalsha(redis, keys, [calls[i] for i in unknown])
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        return [translate(reply) if isinstance(reply, RedisError) else reply for reply in replies]

    async def _evalsha(
        self, redis: Redis | RedisCluster, keys: Sequence[str], calls: Sequence[Sequence[Any]]
    ) -> list[Any]:
        with redis_errors():
            async with redis.pipeline(transaction=False) as pipe:
                for args in calls:
                    pipe.execute_command("EVALSHA", self._sha, len(keys), *keys, *args)
                return await pipe.execute(raise_on_error=False)


def chunks(values: Sequence[T], length: int) -> Iterator[Sequence[T]]:
    """Consecutive slices of `length` values each. The last one may be shorter."""
    for start in range(0, len(values), length):
        yield values[start : start + length]
