"""Text refinement: a model that reads texts and pictures writes the search text of each item.

    Summarizer ─▶ text ─ Evaluator ─┬─ stop ─▶ the item's text
                  ▲                 └─ critique ─ Refiner ─┐
                  └────────────────────────────────────────┘   at most `rounds` evaluations

As in VL-CLIP (arXiv 2507.17080). Its prompts are not known to us: those in prompts/ are our own.
"""

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template
from typing import Any, Literal, NamedTuple

from PIL import Image

from model_export.vl_clip.catalog import PairedItems
from model_export.vl_clip.chat import BudgetSpent, Chat, ChatFailed
from service.core.progress import ProgressBar

PROMPTS = Path(__file__).with_name("prompts")
STOP = "STOP"
JPEG_QUALITY = 90
MAX_TEXT_CHARS = 1000  # of an answer; a model that talks on has not understood
FIELD_CHARS = 1500  # of one field of the item

# stopped: the evaluator was content; rounds: it never was; failed: a question had no answer; budget: the
# requests or tokens were used up.
Outcome = Literal["stopped", "rounds", "failed", "budget"]


class Refined(NamedTuple):
    """The search text of an item."""

    text: str  # the item's own text if nothing else was found
    outcome: Outcome
    num_rounds: int  # evaluations


class Described(NamedTuple):
    """What the model is told about an item."""

    text: str  # the text that it has without refinement
    product: str  # lines of name and value
    photo: Image.Image | None


def refine_all(
    items: Sequence[Callable[[], Described]], chat: Chat, *, rounds: int, parallel: int
) -> list[Refined]:
    """The search text of each item, in the order of `items`.

    If the budget ends, the items that were not finished keep the last text that they had. Raises
    ServerUnusable if the server answers nothing.
    """
    with ProgressBar(total=len(items), desc="Refining texts", unit="item", mininterval=1.0) as progress:

        def one(load: Callable[[], Described]) -> Refined:
            found = refine(load(), chat, rounds)
            progress.update(1)
            return found

        pool = ThreadPoolExecutor(parallel)
        try:
            return list(pool.map(one, items))
        finally:
            pool.shutdown(cancel_futures=True)


def refine(item: Described, chat: Chat, rounds: int) -> Refined:
    """The search text of one item."""
    text, num_rounds = item.text, 0
    try:
        text = _cut(chat.ask(_question("summarizer", item, {})))
        while num_rounds < rounds:
            verdict = chat.ask(_question("evaluator", item, {"query": text, "stop": STOP}))
            num_rounds += 1
            if is_stop(verdict):
                return Refined(text, "stopped", num_rounds)
            if num_rounds == rounds:  # a text that nobody checks is no better than the last one
                break
            text = _cut(chat.ask(_question("refiner", item, {"query": text, "critique": _cut(verdict)})))
    except BudgetSpent:
        return Refined(text, "budget", num_rounds)
    except ChatFailed:
        return Refined(text, "failed", num_rounds)
    return Refined(text, "rounds", num_rounds)


def is_stop(verdict: str) -> bool:
    """Whether the evaluator's answer is the stop marker, whatever its case, quotes and punctuation."""
    return "".join(letter for letter in verdict if letter.isalnum()).upper() == STOP


def described(pairs: PairedItems, pair: int) -> Described:
    """What the model is told about a pair."""
    item = pairs.dataset.items[int(pairs.items[pair])]
    lines = [f"product type: {pairs.types[pair]}"]
    for name, value in item.items():
        if name != "item_id" and value not in (None, "", [], {}):
            lines.append(f"{name}: {_plain(value)[:FIELD_CHARS]}")
    return Described(pairs.texts[pair], "\n".join(lines), pairs.photo(pair))


def summary_of(refined: Sequence[Refined]) -> str:
    """One line about how the items ended."""
    count = Counter(each.outcome for each in refined)
    words: dict[Outcome, str] = {
        "stopped": "stopped by the evaluator",
        "rounds": "out of rounds",
        "failed": "without an answer",
        "budget": "out of budget",
    }
    return ", ".join(f"{count[outcome]:,} {said}" for outcome, said in words.items() if count[outcome])


def _question(role: str, item: Described, values: dict[str, str]) -> list[dict[str, Any]]:
    prompt = Template((PROMPTS / f"{role}.txt").read_text(encoding="utf-8"))
    text = prompt.substitute(values | {"product": item.product})
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if item.photo is not None:
        content.append({"type": "image_url", "image_url": {"url": data_url(item.photo)}})
    return [{"role": "user", "content": content}]


def data_url(photo: Image.Image) -> str:
    """The photo as a JPEG in a data URL, which servers of every kind read."""
    file = io.BytesIO()
    photo.save(file, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return " ".join(str(value).split())


def _cut(text: str) -> str:
    return " ".join(text.split())[:MAX_TEXT_CHARS]
