from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.core.sid import Sid
from service.flows.selection import Diversity, Ranked, Selection

CATEGORY_OF = {**dict.fromkeys("abc", "x"), **dict.fromkeys("de", "y"), **dict.fromkeys("fg"), "h": "z"}

offers = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)).map(
        lambda pair: Ranked(pair[0], Sid((pair[1], 0), 0), -1.0)
    ),
    max_size=20,
)
limits = st.one_of(st.none(), st.integers(1, 3))


@given(offers, st.integers(1, 8), st.frozensets(st.sampled_from("abcdefgh"), max_size=3), limits, limits)
def test_an_item_is_taken_if_and_only_if_nothing_before_it_stands_against_it(
    offered, limit, excluded, per_first_code, per_category
):
    selection = Selection(limit, excluded, Diversity(per_first_code, per_category), CATEGORY_OF.get)
    selection.offer(iter(offered))
    page = []
    for each in offered:
        codes = Counter(taken.sid.codes[0] for taken in page)
        categories = Counter(CATEGORY_OF[taken.item_id] for taken in page)
        category = CATEGORY_OF[each.item_id]
        if (
            len(page) < limit
            and each.item_id not in {*excluded, *(taken.item_id for taken in page)}
            and (per_first_code is None or codes[each.sid.codes[0]] < per_first_code)
            and (per_category is None or category is None or categories[category] < per_category)
        ):
            page.append(each)
    assert selection.page == page


def test_a_full_page_asks_for_no_more_and_a_second_offer_counts_on():
    def items(*ids):
        for item_id in ids:
            yield Ranked(item_id, Sid((0, 0), 0), None)
        raise AssertionError("asked for more")

    selection = Selection(3, frozenset(), Diversity(max_per_category=2), CATEGORY_OF.get)
    selection.offer(iter([Ranked("a", Sid((1, 0), 0), -1.0)]))
    selection.offer(items("a", "b", "c", "d"))
    selection.offer(items())
    assert [each.item_id for each in selection.page] == ["a", "b", "d"]
