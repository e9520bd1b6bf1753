"""`glyphrec recommend --users FILE --out FILE`: a page for each user of a file, as for a mailing.

The output has one whole line for each line of the input, in the same order, so it also says how far an
earlier run came. A line is written once its page is there, or once it is known that it gets none.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from glyphrec_client import Client
from service.commands.asking import ask, has, not_ours
from service.core.json_lines import JsonLine, parse_json, read_json_lines
from service.core.limits import MAX_BATCH_QUERIES, MAX_HISTORY
from service.core.progress import ProgressBar
from service.errors import GlyphrecError

PASSING = (429, 503)  # statuses after which the same query may succeed
WAIT_S, MAX_TRIES = 1.0, 30
MAX_SHOWN_FAILURES = 20
USER, HISTORY = "user_id", "history"
OF_USERS = "items"  # what the files of users that `glyphrec prepare` writes call a history


class _Line(NamedTuple):
    number: int  # in the file of users, from 1
    user_id: Any
    query: dict[str, Any]


def recommend_users(client: Client, users: Path, out: Path, defaults: Mapping[str, Any]) -> int:
    """Write a page for each user. `defaults`: of each query. Returns 1 if some lines got no page, else 0.

    A file that is there already is gone on with. Raises GlyphrecError if a file cannot be read or no service
    answers; what is written then is whole, and the same command goes on behind it.
    """
    num_done, num_failed = _num_done(out), 0
    lines = list(read_json_lines(users, parse=_value_of))
    if num_done > len(lines):
        raise GlyphrecError(
            f"{out}: has {num_done} lines, and {users} has {len(lines)}. It belongs to other users; give "
            "another --out."
        )
    with (
        out.open("ab") as file,
        ProgressBar(
            total=len(lines), initial=num_done, desc=f"recommending to {users.name}", unit=" users"
        ) as bar,
    ):
        rest = islice(lines, num_done, None)
        while batch := list(islice(rest, MAX_BATCH_QUERIES)):
            answers = _answers(client, [_line_of(each, defaults) for each in batch])
            for line, answer in zip(batch, answers, strict=True):
                if "problem" in answer:
                    num_failed += 1
                    if num_failed <= MAX_SHOWN_FAILURES:
                        ProgressBar.write(f"{users}:{line.number}: {answer['problem']}", file=sys.stderr)
            file.write(b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in answers))
            file.flush()
            bar.update(len(batch))
    if num_failed > MAX_SHOWN_FAILURES:
        print(f"and {num_failed - MAX_SHOWN_FAILURES} more without a page", file=sys.stderr)
    print(
        f"{len(lines) - num_done - num_failed} pages, {num_failed} lines without one, {num_done} from before"
    )
    return 1 if num_failed else 0


def _num_done(out: Path) -> int:
    """The whole lines that an earlier run has written. Half a line of a run that was killed is removed."""
    if not out.exists():
        return 0
    with out.open("rb+") as file:
        num_lines = end = 0
        for line in file:
            if line.endswith(b"\n"):
                num_lines, end = num_lines + 1, end + len(line)
        file.truncate(end)
        os.fsync(file.fileno())
    return num_lines


class _NotJson(str):
    """What is wrong with a line that is no JSON."""


def _value_of(text: str) -> Any:
    try:
        return parse_json(text, strict=True)
    except ValueError as error:
        return _NotJson(f"not JSON: {error}")


def _line_of(line: JsonLine, defaults: Mapping[str, Any]) -> _Line | str:
    """The query of a line, or what is wrong with it."""
    value = line.value
    if isinstance(value, _NotJson):
        return str(value)
    if not isinstance(value, dict):
        return 'not an object. A line is a user, such as {"user_id": "u1", "history": ["a1"]}'
    given = {name: each for name, each in value.items() if name not in (USER, OF_USERS)}
    history = given.setdefault(HISTORY, value.get(OF_USERS))
    if isinstance(history, list):
        given[HISTORY] = history[-MAX_HISTORY:]  # the newest count, and the service takes no more
    return _Line(line.number, value.get(USER), {**defaults, **given})


def _answers(client: Client, lines: list[_Line | str]) -> list[dict[str, Any]]:
    """One line of the output for each: the page, or the `problem` in words."""
    answers: dict[int, dict[str, Any]] = {
        place: {USER: None, "problem": each} for place, each in enumerate(lines) if isinstance(each, str)
    }
    left = {place: each for place, each in enumerate(lines) if isinstance(each, _Line)}
    for num_tries in range(1, MAX_TRIES + 1):
        if not left:
            break
        if num_tries > 1:
            time.sleep(WAIT_S)
        results = _ask_for(client, [each.query for each in left.values()])
        for (place, line), result in zip(list(left.items()), results, strict=True):
            problem = result["problem"]
            if problem is None:
                answers[place] = {USER: line.user_id, "request_id": result["request_id"], **result["page"]}
            elif problem["status"] in PASSING and num_tries < MAX_TRIES:
                continue
            else:
                answers[place] = {USER: line.user_id, "problem": problem["detail"]}
            del left[place]
    return [answers[place] for place in range(len(lines))]


def _ask_for(client: Client, queries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    answer = ask(client, "POST", "/recommend/batch", {"queries": queries})
    results = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list) or len(results) != len(queries) or not all(map(_is_result, results)):
        raise not_ours(client, json.dumps(answer, ensure_ascii=False))
    return iter(results)


def _is_result(result: Any) -> bool:
    if not has(result, {"request_id": str, "page": (dict, type(None)), "problem": (dict, type(None))}):
        return False
    problem, page = result["problem"], result["page"]
    if problem is None:
        return page is not None
    return has(problem, {"status": int, "detail": str})
