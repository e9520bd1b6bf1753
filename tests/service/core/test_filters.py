import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.filters import Attributes, DeclaredFields, Equals, Filter, Range, UnusedValue
from service.errors import InvalidFilter, UnknownFilterField

FIELDS = DeclaredFields.parse("brand:text, price:number, refurbished:boolean")


def attributes(*categories: str, available: bool = True, **values: str | float | bool) -> Attributes:
    return Attributes(categories, available, values)


def test_fields_are_declared_with_their_kinds() -> None:
    assert FIELDS.kinds == {"brand": "text", "price": "number", "refurbished": "boolean"}
    assert str(FIELDS) == "brand:text,price:number,refurbished:boolean"
    assert DeclaredFields.parse(" ") == DeclaredFields.parse(",") == DeclaredFields()
    assert DeclaredFields.parse("price:number,brand:text,refurbished:boolean,") == FIELDS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("brand", "'brand' is not a field and its kind; write it as in brand:text"),
        ("brand:words", "'brand:words' is not a field.* the kind is text, number or boolean"),
        (":text", "':text' is not a field"),
        ("a:text:number", "'a:text:number' is not a field"),
        ("a:text,a:number", "'a' is declared twice"),
        (
            "available:boolean",
            "'available' needs no declaration; every filter knows item_id, categories, available",
        ),
        ("categories:text", "'categories' needs no declaration"),
        ("item_id:text", "'item_id' needs no declaration"),
    ],
)
def test_a_bad_declaration_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DeclaredFields.parse(text)


@pytest.mark.parametrize(
    ("posted", "categories"),
    [
        ("Pens", ("Pens",)),
        (["Pens", "Office", "Pens"], ("Pens", "Office")),
        ([["Office", "Pens"], [["Gifts"]], 7, {"a": "b"}], ("Office", "Pens", "Gifts")),
        ([], ()),
        (3, ()),
        (None, ()),
    ],
)
def test_categories_come_in_their_order_without_repeats(posted: object, categories: tuple[str, ...]) -> None:
    assert FIELDS.attributes_of({"categories": posted}).categories == categories


def test_only_false_makes_an_item_unavailable() -> None:
    assert not FIELDS.attributes_of({"available": False}).available
    for posted in (True, "false", 0, "no", [], None):
        assert FIELDS.attributes_of({"available": posted}).available
    assert FIELDS.attributes_of({}).available


@pytest.mark.parametrize(
    ("posted", "number"),
    [
        (3, 3.0),
        (-0.5, -0.5),
        ("149.99", 149.99),
        (" 1e3 ", 1000.0),
        *(
            (odd, None)
            for odd in ("", "$5", "1,5", "5 EUR", "1_000", "nan", "inf", "-Infinity", True, [5], {})
        ),
        *((huge, None) for huge in (math.inf, math.nan, 10**400, "1e999")),
    ],
)
def test_a_number_is_one_or_spells_one_in_full(posted: object, number: float | None) -> None:
    assert FIELDS.attributes_of({"price": posted}).values.get("price") == number


def test_values_of_another_kind_and_undeclared_fields_count_as_absent() -> None:
    item = {"brand": 7, "refurbished": "yes", "color": "red", "price": "cheap"}
    assert FIELDS.attributes_of(item) == attributes()
    item = {"brand": "Acme", "refurbished": False, "color": "red", "price": "7"}
    assert FIELDS.attributes_of(item) == attributes(brand="Acme", refurbished=False, price=7.0)


@pytest.mark.parametrize(
    ("asked", "passing"),
    [
        (Filter(), "abcd"),
        (Filter(categories_any=frozenset({"x", "z"})), "ac"),
        (Filter(categories_all=frozenset({"x", "y"})), "a"),
        (Filter(categories_none=frozenset({"x"})), "bcd"),
        (Filter(categories_any=frozenset({"y"}), categories_none=frozenset({"x"})), "b"),
        (Filter(available=True), "abd"),
        (Filter(available=False), "c"),
        (Filter(item_ids=frozenset({"a", "d", "nobody"})), "ad"),
        (Filter(item_ids=frozenset()), ""),
        (Filter(attributes=(("brand", Equals("Acme")),)), "ab"),
        (Filter(attributes=(("price", Equals(1)),)), "c"),
        (Filter(attributes=(("refurbished", Equals(True)),)), "b"),
        (Filter(attributes=(("price", Range(gte=1, lt=3)),)), "ac"),
        (Filter(attributes=(("price", Range(gt=1, lte=3)),)), "ab"),
        (Filter(attributes=(("price", Range(gte=3, lte=1)),)), ""),
        (Filter(attributes=(("price", Range(gte=0)), ("brand", Equals("Acme")))), "ab"),
    ],
)
def test_what_passes_a_filter(asked: Filter, passing: str) -> None:
    items = {
        "a": attributes("x", "y", brand="Acme", price=2.0, refurbished=False),
        "b": attributes("y", brand="Acme", price=3.0, refurbished=True),
        "c": attributes("z", available=False, brand="acme", price=1.0),
        "d": attributes(),
    }
    assert "".join(item_id for item_id in items if asked.passes(item_id, items[item_id])) == passing


def test_filters_that_ask_the_same_are_equal_whatever_the_order() -> None:
    brand, price = ("brand", Equals("Acme")), ("price", Range(gte=1, lt=2.0))
    one = Filter(attributes=(brand, price), categories_any=frozenset(["x", "y"]))
    other = Filter(attributes=(("price", Range(gte=1.0, lt=2)), brand, brand), categories_any=frozenset("yx"))
    assert one == other
    assert hash(one) == hash(other)


def test_filters_that_differ_are_different() -> None:
    different = [
        Filter(),
        Filter(available=True),
        Filter(available=False),
        Filter(item_ids=frozenset()),
        Filter(item_ids=frozenset("a")),
        Filter(categories_any=frozenset("a")),
        Filter(categories_all=frozenset("a")),
        Filter(categories_none=frozenset("a")),
        Filter(attributes=(("a", Equals("1")),)),
        Filter(attributes=(("a", Equals(1)),)),
        Filter(attributes=(("a", Equals(True)),)),
        Filter(attributes=(("a", Range(gte=1)),)),
        Filter(attributes=(("a", Range(gt=1)),)),
    ]
    assert len(set(different)) == len(different)
    assert [each.is_empty for each in different] == [True] + [False] * (len(different) - 1)


def test_values_of_different_kinds_are_never_equal() -> None:
    alike: list[str | float | bool] = [True, 1.0, "1", "True", False, 0.0]
    for mine in alike:
        passing = [
            each
            for each in alike
            if Filter(attributes=(("f", Equals(mine)),)).passes("a", attributes(f=each))
        ]
        assert [(type(each), each) for each in passing] == [(type(mine), mine)]


@given(number=st.one_of(st.integers(), st.floats(allow_nan=False), st.integers(2**53 - 9, 2**53 + 9)))
def test_a_number_equals_itself_and_no_other_or_is_refused_and_left_out(number: float) -> None:
    stored = FIELDS.attributes_of({"price": number})
    asked = Filter(attributes=(("price", Equals(number)),))
    if stored.values:
        assert asked.passes("a", stored)
        FIELDS.check(asked)
    else:
        with pytest.raises(InvalidFilter):
            FIELDS.check(asked)
    for neighbor in (number - 1, number + 1) if isinstance(number, int) else ():
        assert not asked.passes("a", FIELDS.attributes_of({"price": neighbor}))


POSTED = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["12", "1.5", "true", "9007199254740993", "1e999", "1,5"]),
    st.lists(st.one_of(st.text(max_size=3), st.integers(), st.lists(st.booleans(), max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(price=POSTED, brand=POSTED, refurbished=POSTED, available=POSTED)
def test_a_value_is_used_or_told_to_be_unused(**item: object) -> None:
    used, unused = FIELDS.attributes_of(item), {each.field for each in FIELDS.unused_in(item)}
    for name in FIELDS.kinds:
        assert (name in used.values) + (name in unused) == (item[name] is not None)
    assert ("available" in unused) == (not isinstance(item["available"], bool | None))


@pytest.mark.parametrize(
    ("field", "posted", "reason"),
    [
        (
            "price",
            "$5",
            "is declared as number, and is text without a number that a double holds; write it like 149.99",
        ),
        ("price", 2**53 + 1, "is declared as number, and has more digits than a double"),
        ("price", [5], "is declared as number, and is a list"),
        ("price", True, "is declared as number, and is true or false"),
        ("brand", 3, "is declared as text, and is a number"),
        ("brand", {"name": "Acme"}, "is declared as text, and is an object"),
        ("refurbished", "yes", "is declared as boolean, and is a text; write true or false without quotes"),
        ("refurbished", 0, "is declared as boolean, and is a number; write true or false without quotes"),
        ("categories", 3, "is a number; give a text or a list of texts"),
        (
            "categories",
            ["a", 3, [None, {"b": "c"}]],
            "has 2 values that are not text; give a text or a list of texts",
        ),
        ("available", "false", "is not true or false (without quotes), so the item is available"),
        ("available", 0, "is not true or false (without quotes), so the item is available"),
    ],
)
def test_what_cannot_be_used_is_told_with_the_reason(field: str, posted: object, reason: str) -> None:
    assert FIELDS.unused_in({field: posted}) == [UnusedValue(field, reason)]


def test_a_range_bound_that_no_double_holds_is_refused() -> None:
    with pytest.raises(InvalidFilter, match="price: is compared with a number that has more digits"):
        FIELDS.check(Filter(attributes=(("price", Range(lte=2**53 + 1)),)))


@pytest.mark.parametrize(
    "condition",
    [("brand", Equals("x")), ("price", Equals(1)), ("price", Range(lt=0)), ("refurbished", Equals(False))],
)
def test_a_condition_of_the_declared_kind_is_taken(condition: tuple[str, Equals | Range]) -> None:
    FIELDS.check(Filter(attributes=(condition,)))


def test_an_undeclared_field_is_refused_with_the_declared_ones() -> None:
    asked = Filter(attributes=(("color", Equals("red")),))
    with pytest.raises(UnknownFilterField) as refused:
        FIELDS.check(asked)
    assert str(refused.value) == (
        "The filter names the field 'color', which is not declared. The declared fields are brand:text, "
        "price:number, refurbished:boolean. Use a declared field, or declare this one in "
        "GLYPHREC_FILTER_FIELDS, for example brand:text,price:number."
    )
    assert (refused.value.status, refused.value.slug) == (422, "unknown-filter-field")
    with pytest.raises(UnknownFilterField, match="No field is declared.*GLYPHREC_FILTER_FIELDS"):
        DeclaredFields().check(asked)


@pytest.mark.parametrize(
    ("field", "condition", "said"),
    [
        ("brand", Equals(3), "brand: is declared as text, so it cannot equal 3.0."),
        ("price", Equals("3"), "price: is declared as number, so it cannot equal '3'."),
        ("price", Equals(True), "price: is declared as number, so it cannot equal True."),
        ("refurbished", Equals(1), "refurbished: is declared as boolean, so it cannot equal 1.0."),
        ("brand", Range(gte=1), "brand: is declared as text; only a number can be in a range."),
        (
            "refurbished",
            Range(gte=1),
            "refurbished: is declared as boolean; only a number can be in a range.",
        ),
        ("price", Range(), "price: needs at least one of gte, gt, lte and lt."),
        ("price", Range(gte=1, lt=math.nan), "price: is compared with a number that is not finite."),
        (
            "price",
            Equals(10**400),
            "price: is compared with a number that has more digits than a double.",
        ),
    ],
)
def test_a_condition_that_no_item_can_meet_is_refused(
    field: str, condition: Equals | Range, said: str
) -> None:
    with pytest.raises(InvalidFilter) as refused:
        FIELDS.check(Filter(attributes=((field, condition),)))
    assert str(refused.value) == said
    assert (refused.value.status, refused.value.slug) == (422, "invalid-filter")
