from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.flows.selection import Diversity, Ranked, Selection

FIRST_CODE_SPAN = 10
CATEGORY_OF = {**dict.fromkeys("abc", "x"), **dict.fromkeys("de", "y"), **dict.fromkeys("fg"), "h": "z"}

offers = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)).map(
        lambda pair: Ranked(pair[0], FIRST_CODE_SPAN * pair[1], -1.0)
    ),
    max_size=20,
)
limits = st.one_of(st.none(), st.integers(1, 3))


def first_code_of(packed_sid):
    return packed_sid // FIRST_CODE_SPAN


def selection_of(limit, excluded, diversity):
    return Selection(limit, excluded, diversity, first_code_of=first_code_of, category_of=CATEGORY_OF.get)


@given(offers, st.integers(1, 8), st.frozensets(st.sampled_from("abcdefgh"), max_size=3), limits, limits)
def test_an_item_is_taken_if_and_only_if_nothing_before_it_stands_against_it(
    offered, limit, excluded, per_first_code, per_category
):
    selection = selection_of(limit, excluded, Diversity(per_first_code, per_category))
    selection.offer(iter(offered))
    page = []
    for each in offered:
        codes = Counter(first_code_of(taken.packed_sid) for taken in page)
        categories = Counter(CATEGORY_OF[taken.item_id] for taken in page)
        category = CATEGORY_OF[each.item_id]
        if (
            len(page) < limit
            and each.item_id not in {*excluded, *(taken.item_id for taken in page)}
            and (per_first_code is None or codes[first_code_of(each.packed_sid)] < per_first_code)
            and (per_category is None or category is None or categories[category] < per_category)
        ):
            page.append(each)
    assert selection.page == page


def test_a_full_page_asks_for_no_more_and_a_second_offer_counts_on():
    def items(*ids):
        for item_id in ids:
            yield Ranked(item_id, 0, None)
        raise AssertionError("asked for more")

    selection = selection_of(3, frozenset(), Diversity(max_per_category=2))
    selection.offer(iter([Ranked("a", FIRST_CODE_SPAN, -1.0)]))
    selection.offer(items("a", "b", "c", "d"))
    selection.offer(items())
    assert [each.item_id for each in selection.page] == ["a", "b", "d"]
