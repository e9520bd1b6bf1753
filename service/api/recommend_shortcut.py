"""POST /recommend without an app: from the bytes of an ordinary request to those of its answer (decision 26).

Ordinary is a valid body without a filter, limits on similar items or the ranker, in plain JSON, with a key
that may read. Everything else is declined, and the route in recommend.py answers it. So each error has one
place, and the answers here are those of the route to the letter; a test holds both together.

What requests share is done once for all that a batch of searches answers: their metrics, and the turn of the
event loop in which their answers are written.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from time import perf_counter
from typing import Annotated, Literal

import msgspec

from service.api.dependencies import ServiceState
from service.catalog.catalog import Catalog
from service.core.items import MAX_ID_CHARS
from service.core.limits import MAX_EXCLUDED, MAX_HISTORY, MAX_LIMIT
from service.errors import ServiceError, TookTooLong
from service.flows.recommend import Recommended, Recommending
from service.flows.search import Query
from service.flows.selection import Ranked
from service.http.connection import CLOCK_S
from service.http.limits import MAX_HEAD_BYTES, MAX_HEADERS, deadline_after
from service.http.problems import internal_problem, problem_response
from service.http.request_ids import request_id_of
from service.http.security import Guard, Scope, bearer_token
from service.http.whole_request import Shortcut, WholeRequest
from service.lifecycle.model import Model

log = logging.getLogger("glyphrec")

METHOD, PATH = "POST", "/recommend"
JSON = b"application/json"
STAGES = ("parse", "queue", "history", "decode", "resolve", "write")
CLOSE = "connection: close\r\n"
MAX_PREPARED = 65_536  # items whose JSON is kept, which takes some 400 bytes for each
UNUSUAL_HEADERS = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARS)]


class Ordinary(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an ordinary request, with the bounds of RecommendRequest."""

    history: Annotated[list[_Id], msgspec.Meta(max_length=MAX_HISTORY)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)] = 10
    exclude_item_ids: Annotated[list[_Id], msgspec.Meta(max_length=MAX_EXCLUDED)] | None = None
    exclude_history: bool = True
    guarantee: Literal["none", "exact"] = "none"
    filter: None = None
    diversity: None = None
    rerank: bool = False


_NAMES = [f'"{name}"'.encode() for name in Ordinary.__struct_fields__]
_decode = msgspec.json.Decoder(Ordinary).decode
_encode = msgspec.json.Encoder().encode


def ordinary_body(body: bytes | bytearray) -> Ordinary | None:
    """The body, if it is ordinary.

    A name that comes twice is an error that msgspec does not see. Without escapes, text in quotation marks is
    a name or a whole value, so a name that is there once did not come twice.
    """
    if b"\\" in body:
        return None
    try:
        given = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    for name in _NAMES:
        if body.count(name) > 1:
            return None
    return None if given.rerank else given


class _Call:
    """One request under way."""

    __slots__ = ("deadline", "given", "model", "parse_s", "request", "request_id", "timeout_s", "total_s")

    def __init__(self, request: WholeRequest, request_id: str, given: Ordinary, model: Model) -> None:
        self.request, self.request_id, self.given, self.model = request, request_id, given, model
        self.deadline = self.timeout_s = math.inf  # by the clock of the event loop, and from the start on
        self.parse_s = self.total_s = 0.0


class RecommendShortcut:
    """Answers ordinary requests. All of it runs in the event loop."""

    def __init__(self, state: ServiceState, guard: Guard, *, max_body_bytes: int) -> None:
        self._state = state
        self._guard = guard
        self._max_body_bytes = max_body_bytes
        self._metrics = state.metrics
        self._calls: dict[Recommending, _Call] = {}  # under way
        self._ended: list[Recommending] = []  # whose answers are written in the next turn of the loop
        self._rows = PreparedItems()
        self._expires_at = math.inf  # when `_timer` is due: at the first deadline of `_calls`, or before it
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, request: WholeRequest) -> bool:
        """Put an ordinary request into the queue. False: it is not one."""
        started_at = perf_counter()
        model = self._state.readiness.model
        if model is None or self._state.readiness.is_stopping or len(request.body) > self._max_body_bytes:
            return False
        headers = dict(request.headers)
        if not _are_ordinary(headers, len(request.headers)):
            return False
        given = ordinary_body(request.body)
        if given is None:
            return False
        loop, deadline = asyncio.get_running_loop(), math.inf
        try:
            self._guard.check_key(Scope.READ, _key_of(headers))
            if (timeout := headers.get(b"x-request-timeout")) is not None:
                deadline = deadline_after(timeout.decode("latin-1"))
            call = _Call(request, request_id_of(_text(headers, b"x-request-id")), given, model)
            now = loop.time()
            call.deadline = min(deadline, now + model.recommender.timeout_s)
            call.timeout_s = call.deadline - now
            searches = model.recommender.begin(
                _query_of(given), call.deadline, request.reservation, self._end
            )
        except ServiceError:  # the app says the same, with all that belongs to it
            return False
        call.parse_s = perf_counter() - started_at
        self._calls[searches] = call
        model.enter()
        self._metrics.num_in_flight += 1
        if call.deadline < self._expires_at:
            self._expire_at(call.deadline, loop)
        return True

    # --- deadlines: one timer for all ---

    def _expire_at(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._expires_at = deadline
        self._timer = loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """End what is late, and wait for the next deadline. Most calls have ended long before theirs."""
        loop = asyncio.get_running_loop()
        self._timer, self._expires_at = None, math.inf
        for searches, call in list(self._calls.items()):
            if searches.done():
                continue
            if call.deadline <= loop.time() + CLOCK_S:
                searches.give_up(TimeoutError())
            else:
                self._expires_at = min(self._expires_at, call.deadline)
        if self._expires_at < math.inf:
            self._expire_at(self._expires_at, loop)

    # --- the end of a request ---

    def _end(self, searches: Recommending) -> None:
        """Write its answer in the next turn of the loop, after the next batch has begun."""
        if not self._ended:
            asyncio.get_running_loop().call_soon(self._answer_ended)
        self._ended.append(searches)

    def _answer_ended(self) -> None:
        ended, self._ended = self._ended, []
        answered: list[tuple[_Call, Recommending, float]] = []
        for searches in ended:
            call = self._calls.pop(searches)
            try:
                if searches.recommended is not None:
                    answered.append((call, searches, self._answer(call, searches, searches.recommended)))
                else:
                    self._refuse(call, searches.error)
            except Exception as error:  # outermost loop: the others of the batch get their answers
                if call.request.response_complete:
                    log.exception("request %s failed after its answer: %s %s", call.request_id, METHOD, PATH)
                else:
                    self._refuse(call, error)
            finally:
                call.model.leave()
                self._metrics.num_in_flight -= 1
        self._observe(answered)

    def _answer(self, call: _Call, searches: Recommending, found: Recommended) -> float:
        """Send the page -> seconds that it took to write."""
        started_at = perf_counter()
        model, page, given = call.model, found.page, call.given
        body = body_of(self._rows.of(page.items, model.catalog), found, model.manifest.recommender_id)
        self._state.pages.remember(
            call.request_id,
            model.manifest.recommender_id,
            [each.item_id for each in page.items],
            given.history[-model.num_remembered :] if model.num_remembered else (),
        )
        now = perf_counter()
        write_s, call.total_s = now - started_at, now - call.request.started_at
        timing = (
            f"parse;dur={1000 * call.parse_s:.2f}, queue;dur={1000 * searches.queue_s:.2f}, "
            f"history;dur={1000 * searches.history_s:.2f}, decode;dur={1000 * searches.decode_s:.2f}, "
            f"resolve;dur={1000 * searches.resolve_s:.2f}, write;dur={1000 * write_s:.2f}"
        )
        self._send(call, HTTPStatus.OK, body, "content-type: application/json\r\n", timing)
        return write_s

    def _refuse(self, call: _Call, error: BaseException | None) -> None:
        """Send the problem document that the app would send."""
        if isinstance(error, TimeoutError):
            error = TookTooLong("The recommendation", call.timeout_s)
        if isinstance(error, ServiceError):
            answer = problem_response(error, instance=PATH, request_id=call.request_id)
            refusal: ServiceError | None = error
        else:
            log.error("request %s failed: %s %s", call.request_id, METHOD, PATH, exc_info=error)
            answer = internal_problem(instance=PATH, request_id=call.request_id)
            refusal = None
        head = "".join(
            f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n"
            for name, value in answer.raw_headers
            if name != b"content-length"
        )
        call.total_s = perf_counter() - call.request.started_at
        self._send(call, answer.status_code, bytes(answer.body), head, f"parse;dur={1000 * call.parse_s:.2f}")
        self._metrics.observe_http(PATH, METHOD, answer.status_code, call.total_s, refusal)

    def _send(self, call: _Call, status: int, body: bytes, head: str, timing: str) -> None:
        keep_alive = call.request.keep_alive and not self._state.readiness.is_stopping
        lines = (
            f"content-length: {len(body)}\r\n{head}x-request-id: {call.request_id}\r\n"
            f"{'' if keep_alive else CLOSE}"
            f"server-timing: {timing}, total;dur={1000 * call.total_s:.2f}\r\n\r\n"
        )
        call.request.answer(status, lines.encode("latin-1"), body, keep_alive=keep_alive)

    def _observe(self, answered: Sequence[tuple[_Call, Recommending, float]]) -> None:
        """Count the answers of a batch."""
        if not answered:
            return
        metrics, stages = self._metrics, self._metrics.stage_seconds
        metrics.observe_answers(PATH, METHOD, [call.total_s for call, _, _ in answered])
        parse, queue, history, decode, resolve, write = (stages.labels("recommend", each) for each in STAGES)
        kinds = Counter[tuple[str, bool]]()
        for call, searches, write_s in answered:
            parse.observe(call.parse_s)
            queue.observe(searches.queue_s)
            history.observe(searches.history_s)
            decode.observe(searches.decode_s)
            resolve.observe(searches.resolve_s)
            write.observe(write_s)
            found = searches.recommended
            assert found is not None, "it is answered"
            kinds[found.page.source, found.page.exact] += 1
            if found.widened:
                metrics.widenings.inc(found.widened)
            if found.page.unknown_item_ids:
                metrics.unknown_items.inc(len(found.page.unknown_item_ids))
        for (source, exact), times in kinds.items():
            metrics.observe_recommendation(source, exact=exact, filtered=False, times=times)


def shortcuts(state: ServiceState, guard: Guard, max_body_bytes: int) -> dict[tuple[str, str], Shortcut]:
    """All shortcuts, by method and target."""
    return {(METHOD, PATH): RecommendShortcut(state, guard, max_body_bytes=max_body_bytes)}


class PreparedItems:
    """The JSON of items on a page, but for their scores: made once for each item of a catalog."""

    def __init__(self) -> None:
        self._catalog: Catalog | None = None
        self._around: dict[
            str, tuple[int, str, str]
        ] = {}  # item -> packed sid, JSON before and after a score

    def of(self, items: Sequence[Ranked], catalog: Catalog) -> str:
        """The items with commas between them."""
        if catalog is not self._catalog or len(self._around) > MAX_PREPARED:
            self._catalog = catalog  # the same packed sid has other codes under another tokenizer
            self._around.clear()
        around, rows = self._around, []
        for item_id, packed_sid, score, _ in items:
            found = around.get(item_id)
            if found is None or found[0] != packed_sid:
                found = around[item_id] = self._prepare(item_id, packed_sid, catalog)
            rows.append(f"{found[1]}{'null' if score is None else repr(score)}{found[2]}")
        return ",".join(rows)

    def _prepare(self, item_id: str, packed_sid: int, catalog: Catalog) -> tuple[int, str, str]:
        before = f'{{"item_id":{_encode(item_id).decode()},"score":'
        return packed_sid, before, f',"ranker_score":null,"semantic_id":"{catalog.unpacked(packed_sid)}"}}'


def body_of(rows: str, found: Recommended, recommender_id: str) -> bytes:
    """A RecommendResponse as JSON, its fields in the order of the model."""
    page = found.page
    search = (
        f'{{"num_beams":{found.num_beams},"widened":{found.widened},'
        f'"beam_limit_reached":{"true" if found.beam_limit_reached else "false"}}}'
        if page.was_searched
        else "null"
    )
    unknown = _encode(page.unknown_item_ids).decode() if page.unknown_item_ids else "[]"
    return (
        f'{{"items":[{rows}],"exact":{"true" if page.exact else "false"},"exact_for":"page",'
        f'"search":{search},"matching_items":null,"source":"{page.source}","unknown_item_ids":{unknown},'
        f'"model_version":"{recommender_id}","ranker_version":null,"catalog_version":{page.catalog_version}}}'
    ).encode()


def _query_of(given: Ordinary) -> Query:
    return Query(
        history=given.history,
        limit=given.limit,
        exclude_item_ids=frozenset(given.exclude_item_ids or ()),
        exclude_history=given.exclude_history,
        wants_exact=given.guarantee == "exact",
    )


def _are_ordinary(headers: Mapping[bytes, bytes], num_headers: int) -> bool:
    """Whether no header comes twice, is long, or changes what the body means."""
    media_type = headers.get(b"content-type", b"")
    return (
        len(headers) == num_headers <= MAX_HEADERS
        and UNUSUAL_HEADERS.isdisjoint(headers)
        and (media_type == JSON or media_type.startswith(JSON + b";"))
        and sum(map(len, headers)) + sum(map(len, headers.values())) <= MAX_HEAD_BYTES
    )


def _key_of(headers: Mapping[bytes, bytes]) -> str:
    if b"x-api-key" in headers:
        return _text(headers, b"x-api-key")
    return bearer_token(_text(headers, b"authorization"))


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")
