"""The findings of fsck: what each kind means, and the report as text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_LISTED = 1_000  # findings of a report; more are only counted

# kind -> its meaning, and what helps if `--repair` does not
KINDS = {
    "wrong_score": "a member of the trie has a score other than 0, so pages of the trie are out of order",
    "stray_member": "the trie has the item at a place that does not fit its codes",
    "missing_member": "the item has codes, but is not in the trie, so it is never recommended",
    "missing_codes": "the item has no codes, although the trie or the log has them",
    "codes_without_item": "there are codes of an item that does not exist",
    "shared_slot": "another item has the same Semantic ID",
    "unread": "the item has no codes. Restart a replica, which reads it; or post it again",
    "outdated_codes": "the codes are of an older text. Restart a replica, which reads it; or post it again",
    "log_disagrees": "the log's last change of the item does not match its codes, so replicas may differ",
    "log_gap": "changes are missing in the log. Replicas that have not passed them load the catalog again",
    "unreadable_item": "the item's value is not ours, so it is not served. Post the item again or delete it",
    "unreadable_codes": "the item's codes are not ours. Restart a replica, which reads it; or post it again",
    "unreadable_member": "a member of the trie is not ours, and is skipped",
    "unreadable_change": "an entry of the log is not ours. Replicas that reach it load the catalog again",
    "picture_without_item": "a picture is kept that no item refers to",
    "lost_picture": "the item refers to a picture that is not kept. Post the picture again",
    "other_picture": "the item refers to another picture than the one that is kept. Post the picture again",
    "damaged_picture": "the bytes of the kept picture have changed. Post the picture again",
    "vector_without_codes": "there is a vector of an item that has no codes",
    "outdated_vector": "the vector is of an older text. Restart a replica, which reads the item again",
    "unreadable_vector": "the item's vector is not ours. Restart a replica, which reads the item again",
    "unreadable_counts": "what was taken together with the item is not ours, so it has no say in searches",
    "unreadable_id": "an item's id is not UTF-8. Another program writes under the catalog's keys",
}


class Finding(NamedTuple):
    """One inconsistency in the store, and whether this run repaired it. `kind` is a key of KINDS."""

    kind: str
    where: str  # an item id, or for the log a version
    is_mended: bool


@dataclass
class FsckReport:
    """What was checked, and the findings."""

    catalog: str
    tokenizer_id: str
    is_served: bool
    version: int = 0  # of the log when the check began
    num_items: int = 0
    num_codes: int = 0
    num_members: int = 0
    num_changes: int = 0  # in the log
    num_rows: int = 0  # items with counts of what was taken together with them
    num_pictures: int = 0
    picture_bytes: int = 0  # of all kept pictures, without what Redis adds
    num_vectors: int = 0  # of the items' present content
    num_unread: int = (
        0  # items without codes of their present text; no fault where the tokenizer is not served
    )
    found: Counter[str] = field(default_factory=Counter)  # kind -> count
    mended: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)  # the first MAX_LISTED

    @property
    def is_clean(self) -> bool:
        """Whether there were no findings at all. Repaired ones count as findings."""
        return not self.found

    @property
    def num_quarantined(self) -> int:
        """Values of other programs: the service skips them, and the report lists them."""
        return sum(count for kind, count in self.found.items() if kind.startswith("unreadable"))

    def add(self, finding: Finding) -> None:
        """Count the finding. It is listed too, unless the list already has MAX_LISTED entries."""
        self.found[finding.kind] += 1
        if finding.is_mended:
            self.mended[finding.kind] += 1
        if len(self.findings) < MAX_LISTED:
            self.findings.append(finding)


def lines(report: FsckReport) -> Iterator[str]:
    """The report as text."""
    serves = "which is served" if report.is_served else "which is not served"
    yield (
        f"{report.catalog}: {report.num_items} items, {report.num_codes} codes, "
        f"{report.num_members} in the trie, {report.num_changes} changes in the log, "
        f"the last of version {report.version}; tokenizer {report.tokenizer_id}, {serves}. "
        f"{report.num_rows} items have counts. {report.num_pictures} pictures are kept, "
        f"{report.picture_bytes} bytes. {report.num_vectors} items have a vector."
    )
    for finding in report.findings:
        mended = " Mended." if finding.is_mended else ""
        yield f"{finding.where}: {finding.kind}: {KINDS[finding.kind]}.{mended}"
    num_more = report.found.total() - len(report.findings)
    if num_more:
        yield f"… and {num_more} more."
    if not report.is_served and report.num_unread:
        yield f"{report.num_unread} items are still to be read by this tokenizer."
    if report.is_clean:
        yield "Nothing is wrong."
    else:
        yield (
            f"{report.found.total()} found, {report.mended.total()} mended, "
            f"{report.num_quarantined} of them values that are not ours."
        )
