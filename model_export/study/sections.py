"""The sections of study.md: the question of each section, and the cells that answer it.

The conclusions are not here. They are written by hand, one Markdown file per section, and write.py includes
them.
"""

from collections.abc import Collection
from typing import NamedTuple


class Section(NamedTuple):
    """One section of study.md. It shows every cell that belongs to one of its groups."""

    key: str  # the name of the section's notes file and of its plot
    title: str
    groups: tuple[str, ...]
    intro: str
    reference: str = "default"  # the cell that the other cells are compared with


HEADLINE = Section(
    "headline",
    "The headline",
    ("headline",),
    "The default configuration, compared with the usual alternatives. All of them run on the same code and "
    "the same split.",
)
REACH = Section(
    "reach",
    "What is reached",
    ("headline",),
    "coverage@10 is the share of the catalog that at least one test user is shown. The other columns are "
    "Hit@10 of the test users with one kind of target, history excluded. A transition leads from the last "
    "item of the history to the target. It is seen if the training part has it. The items of each third of "
    "popularity have a third of the purchases in the training part. The rare third includes items without "
    "any.",
)
ENCODERS = Section(
    "encoders",
    "1. Pictures against text",
    ("encoders",),
    "Only the encoder changes. Both sides have the same quantizer, generator and seeds. Unless the label "
    "says no head, both sides also have the same training on the catalog. The generator runs without "
    "likeness, because the question is how good the codes are. The headline has the figures with likeness.",
    "learnt",
)
RESOLUTION = Section(
    "resolution",
    "2. Resolution",
    ("resolution",),
    "The same text is drawn at several sizes, from generous to unreadable. The height of a line and the "
    "width of its letters change. The generator runs without likeness, because the question is how good "
    "the codes are.",
    "learnt",
)
SEGMENTS = Section(
    "segments",
    "3. Which items gain",
    (),
    "The test users are grouped by the kind of their next item. Its text is dense with attributes or "
    "narrative, and long or short; each kind is half of the catalog. The item is popular or rare; each kind "
    "has half of the purchases.",
)
ROBUSTNESS = Section(
    "robustness",
    "4. Robustness",
    ("robustness",),
    "The same item is written in another way. The tables show the share of items that keep all of their "
    "codes, and the share that keep the first code.",
)
COLD = Section(
    "cold",
    "5. Cold items",
    ("cold",),
    "5 % of the items are removed from all training and then posted to a live service. The users here have "
    "one of these items as their target. How often is it among ten recommendations? The table compares this "
    "rate with a random draw, and with the same model when the cold items have random codes. It also shows "
    "how often a cold item has the same first code as the nearest trained item.",
)
ABLATION = Section(
    "ablation",
    "6. What each part buys",
    ("ablation",),
    "The steps lead from plain TIGER to the default, one part at a time. Each has its quality, its training "
    "time and its milliseconds per request.",
)
QUANTIZERS = Section(
    "quantizers",
    "Quantizers and collisions",
    ("quantizers",),
    "Only the quantizer or the treatment of collisions changes. The generator runs without likeness, because "
    "the question is how good the codes are.",
    "learnt",
)
GENERATORS = Section(
    "generators",
    "Generators",
    ("generators",),
    "Only the generator changes. It runs without likeness.",
    "learnt",
)
TUNING = Section(
    "tuning",
    "How SASRec was tuned",
    ("tuning",),
    "The configuration was chosen by NDCG@10 on the validation targets. The test figures are shown as well.",
)
PICTURES = Section(
    "pictures",
    "Photos beside texts",
    ("pictures",),
    "Data sets whose items have photos. The same head, quantizer, generator and seeds read the text, the "
    "photo, or both. Unless the label says so, the generator runs without likeness and counts, because the "
    "question is how good the codes are.",
    "pictures_early",
)
PICTURE_TEXTS = Section(
    "picture_texts",
    "Photos beside shorter texts",
    ("picture_texts",),
    "The same comparison with less text: only titles, or titles and descriptions.",
    "pictures_early",
)
PICTURE_OVERLAP = Section(
    "picture_overlap",
    "How near text and photo are",
    ("picture_overlap",),
    "The share of an item's ten nearest items that text and photo have in common, by what the encoders see. "
    "arXiv 2601.14697 explains its gain by drawn text being nearer to photos than encoded text.",
    "pictures_early",
)
PICTURE_COLD = Section(
    "picture_cold",
    "Photos of cold items",
    ("picture_cold",),
    "As in question 5: items that are removed from all training, and then posted to a live service with "
    "their photos.",
    "pictures_early",
)
QUESTIONS = (ENCODERS, RESOLUTION, SEGMENTS, ROBUSTNESS, COLD, ABLATION)
SECTIONS = (
    HEADLINE, REACH, *QUESTIONS, QUANTIZERS, GENERATORS, PICTURES, PICTURE_TEXTS,
    PICTURE_OVERLAP, PICTURE_COLD, TUNING
)  # fmt: skip


def further(groups: Collection[str]) -> list[Section]:
    """A section without introduction for each group that no other section shows, sorted by name."""
    shown = {group for section in SECTIONS for group in section.groups}
    return [
        Section(group, group.replace("_", " ").capitalize(), (group,), "")
        for group in sorted(set(groups) - shown)
    ]


REPRODUCE = """Every number on this page comes from

```
glyphrec study --data DIR/scientific --data DIR/office --data DIR/hm_ladies --data DIR/movietweetings_posters
```

A data set with photos runs the cells about photos, and any other the remaining ones.

The command computes the cells that are not stored yet. If it was stopped, it resumes there. It writes this
page, its plots and [study.json](study.json), which has every figure with its interval. Stored cells are in
`docs/study/cells`. There is one file per dataset, configuration and seed. It holds the rank of each test
user's target. The conclusions are written by hand in `docs/study/notes`, and the command copies them into
this page."""

METHOD = """The evaluation is leave-one-out and counts items. The last item of each user is the test target,
the item before it is the validation target, and all earlier items are for training. Every test user counts,
and the full catalog is ranked. A hit is the item itself, not its codes. The items of the history are left out
of the ranking, unless a column says that they are included.

`.1040 [.0980, .1100] ± .0012` is the mean over users and seeds, its 95 % interval by bootstrap over users
(10,000 resamples) and the standard deviation over seeds. Differences are paired: both sides are compared user
by user. Code-level figures count a hit if a beam has the target's codes, even if the beam leads to another
item. They are for reference only.

**Caution.** These data give the order of the purchases, but not their times. In the Amazon sets, most
purchases of one user on one day are listed in catalog order. So a model can partly guess the next item from
that order alone. Part of every next-item figure, here and in papers, is an artifact of this order. If the
times were known, the honest variant would shuffle the purchases of one day. Here the purchases of one day
cannot be identified, so they cannot be shuffled. These figures are not comparable with figures from data sets
that were prepared in another way."""

COSTS = """The milliseconds to encode an item and the milliseconds per request are medians on one core. All of
them come from `glyphrec study … --costs` on one machine ({machine}). Training time was measured on
the machine that ran the cell. It is in core seconds if that machine had no GPU, and in seconds if it had
one."""

DATA_NOTES = {
    "scientific": "In `scientific`, 24 items have a broken title, 24 have the same text as another item, and "
    "123 have no description. 73 test targets never occur in training. A model that learns a vector for each "
    "item id cannot find these.",
    "hm_ladies": "`hm_ladies` is one week of a shop, so most targets belong to the basket of the history. "
    "Each item has a studio photo, whose color need not be the one that was bought.",
    "movietweetings_posters": "In `movietweetings_posters` the items are films, the photos are their "
    "posters, and most posters print the title.",
}
