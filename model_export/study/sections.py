"""The sections of study.md: what each asks, and which cells answer it. Conclusions are not here: they are
written by hand, one Markdown file a section, and the writer includes them.
"""

from collections.abc import Collection
from typing import NamedTuple


class Section(NamedTuple):
    key: str  # of its notes, and of its plot
    title: str
    groups: tuple[str, ...]
    intro: str
    reference: str = "default"  # the cell that the others are compared with


HEADLINE = Section(
    "headline",
    "The headline",
    ("headline",),
    "The default configuration beside what a team would otherwise use, all from the same code and the same "
    "split.",
)
ENCODERS = Section(
    "encoders",
    "1. Pictures against text",
    ("encoders",),
    "The encoder alone changes: quantizer, generator, seeds and, where the label says so, the training on "
    "the catalog are the same for both sides. Without likeness, as what the codes are like is the "
    "question; with it, see the headline.",
    "learnt",
)
RESOLUTION = Section(
    "resolution",
    "2. Resolution",
    ("resolution",),
    "The same text drawn from generous to unreadable, by the height of a line and by squeezing its width. "
    "Without likeness, as what the codes are like is the question.",
    "learnt",
)
SEGMENTS = Section(
    "segments",
    "3. Which items gain",
    (),
    "Test users by the kind of item that they took next: dense with attributes or narrative, long or short "
    "by their text (halves of the catalog), popular or rare (halves of the purchases).",
)
ROBUSTNESS = Section(
    "robustness",
    "4. Robustness",
    ("robustness",),
    "The share of items that keep all of their codes, or the first, when the same item is written by "
    "somebody else.",
)
COLD = Section(
    "cold",
    "5. Cold items",
    ("cold",),
    "5 % of the items are removed from all training and then posted to a live service. How often are they "
    "among ten recommendations to users whose target they are, beside a draw by chance and beside the same "
    "model with random codes for them, and how often do they share the first code with the trained item "
    "that is nearest?",
)
ABLATION = Section(
    "ablation",
    "6. What each part buys",
    ("ablation",),
    "From plain TIGER to the default, one part at a time: quality beside training time and beside "
    "milliseconds a request.",
)
QUANTIZERS = Section(
    "quantizers",
    "Quantizers and collisions",
    ("quantizers",),
    "The quantizer alone changes. Without likeness, as what the codes are like is the question.",
    "learnt",
)
GENERATORS = Section(
    "generators", "Generators", ("generators",), "The generator alone changes, without likeness.", "learnt"
)
TUNING = Section(
    "tuning",
    "How SASRec was tuned",
    ("tuning",),
    "Chosen by NDCG@10 of the validation targets; the test figures stand beside it.",
)
QUESTIONS = (ENCODERS, RESOLUTION, SEGMENTS, ROBUSTNESS, COLD, ABLATION)
SECTIONS = (HEADLINE, *QUESTIONS, QUANTIZERS, GENERATORS, TUNING)


def further(groups: Collection[str]) -> list[Section]:
    """A plain section for each group that no other shows, by name."""
    shown = {group for section in SECTIONS for group in section.groups}
    return [
        Section(group, group.replace("_", " ").capitalize(), (group,), "")
        for group in sorted(set(groups) - shown)
    ]


REPRODUCE = """Every number here comes from

```
glyphrec study --data DIR/scientific --data DIR/office
```

It computes the cells that are not stored yet, resumes where it was stopped, and writes this page, the plots
beside it and [study.json](study.json), which has every figure with its interval. Stored cells are in
`docs/study/cells`, one file for dataset, configuration and seed, with what each test user got.
Conclusions in words are written by hand in `docs/study/notes` and included."""

METHOD = """Item-level, leave-one-out: the last item of each user is the target, the one before serves
validation, and all else is training. Every test user counts, the full catalog is ranked, and a hit is the
item itself, not its codes. Figures are with the items of the history left out of the ranking, unless a
column says that they are included.

`.1040 [.0980, .1100] ± .0012` is the mean over users and seeds, its 95 % interval by bootstrap over users
(10,000 resamples) and the standard deviation over seeds. Differences are paired: both sides are compared
user by user. Code-level figures count a beam that has the target's codes, whichever item it leads to, and
are for reference only.

**Caution.** Of these purchases only the order is known and not the times. In the Amazon sets most of what a
user bought on one day stands in catalog order, so what comes next can in part be guessed from that order
alone: part of every next-item figure, here and in print, is an artifact of it. Where times are known, the
honest variant shuffles the purchases of one day; here these ties cannot be found, so they cannot be
shuffled. Figures from sets that were prepared in another way are not comparable with these."""

COSTS = """Milliseconds to encode an item and milliseconds a request are medians on one core, all from one
run of `glyphrec study … --costs` on one machine ({machine}). Training time is that of whichever machine ran
the cell: core seconds where it had no GPU, seconds where it had one."""

DATA_NOTES = {
    "scientific": "In `scientific`, 24 items have a broken title, 24 share their whole text with another, "
    "123 have no description, and 73 test targets never occur in training: for a model that learns items by "
    "their number they are lost.",
}
