"""The nearest vectors: compared with a slow exact ranking, through edits, filters and the graph."""

import asyncio

import numpy as np
import pytest

from service.catalog.catalog import Catalog, Loading
from service.catalog.graph_builder import GraphBuilder
from service.catalog.nearest import EXPANSION_SEARCH, MAX_EXPANSION, NearestGraph
from service.catalog.vectors import RECALL_WANTED, VectorIndex
from service.core.filters import Attributes, Filter
from service.core.sid import Sid, SidSpec
from service.core.vectors import packed, quantized
from service.store.items import TrieEntry
from tests.service import catalogs

DIM = 16
SPEC = SidSpec(levels=(64, 64))


def clustered(num_rows, seed=0, dim=DIM):
    """Vectors around some centers, as those of items are."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(40, dim))
    rows = centers[rng.integers(40, size=num_rows)] + 0.5 * rng.normal(size=(num_rows, dim))
    return rows.astype(np.float32)


def sid_of(number):
    return Sid((number % 64, number // 64 % 64), number // 4096)


def catalog_of(vectors, *, exact_up_to=10**9):
    """Item i has the i-th vector; the even ones are in the category `even`."""
    catalog = Catalog(SPEC, vector_dim=vectors.shape[1])
    catalog.vectors.exact_up_to = exact_up_to
    for number, value in enumerate(packed(vectors)):
        catalog.put(f"i{number}", sid_of(number), attributes_of(number), value)
    return catalog


def attributes_of(number):
    return Attributes(("even",) if number % 2 == 0 else ("odd",), True, {})


def truth(vectors, query, count, allowed=lambda _: True):
    """(item id, cosine), best first, equal ones by id: one pair of whole vectors at a time."""
    kept = quantized(vectors).astype(np.int64)
    asked = query.astype(np.int64)
    scored = [
        (-float(row @ asked) / float(np.sqrt(row @ row) * np.sqrt(asked @ asked)), f"i{number}")
        for number, row in enumerate(kept)
        if row.any() and allowed(f"i{number}")
    ]
    return [(item_id, -score) for score, item_id in sorted(scored)[:count]]


def found_in(catalog, query, count, asked=None, left_out=()):
    view = None if asked is None else catalog.views.view_of(asked)
    nearest = catalog.vectors.nearest(
        query,
        count,
        None if view is None else view.members,
        0 if view is None else view.num_items,
        [catalog.views.place_of(each) for each in left_out],
    )
    ids = [catalog.vectors.id_at(place) for place in nearest.places]
    return list(zip(ids, nearest.scores, strict=True))


def assert_same(found, expected):
    assert [item_id for item_id, _ in found] == [item_id for item_id, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_an_exact_search_is_the_beginning_of_the_whole_ranking(seed):
    vectors = clustered(200, seed)
    vectors[20] = vectors[10]  # equal scores are in the order of their ids
    vectors[30] = 0
    catalog = catalog_of(vectors)
    query = quantized(clustered(1, seed + 100))[0]
    assert_same(found_in(catalog, query, 10), truth(vectors, query, 10))
    assert_same(found_in(catalog, query, 500), truth(vectors, query, 500))
    odd = Filter(categories_any=frozenset({"odd"}))
    expected = truth(vectors, query, 10, lambda i: int(i[1:]) % 2 == 1)
    assert_same(found_in(catalog, query, 10, odd), expected)
    best = expected[0][0]
    assert_same(
        found_in(catalog, query, 9, odd, [best]),
        truth(vectors, query, 9, lambda i: int(i[1:]) % 2 == 1 and i != best),
    )


def test_a_query_without_direction_finds_nothing():
    catalog = catalog_of(clustered(20))
    assert found_in(catalog, np.zeros(DIM, np.int8), 10) == []


def test_edits_are_found_at_once():
    vectors = clustered(50)
    catalog, query = catalog_of(vectors), quantized(clustered(1, 7))[0]
    catalog.drop("i3")
    catalog.put("i4", sid_of(4), attributes_of(4), packed(-vectors[4:5])[0])
    catalog.put("i5", sid_of(5), attributes_of(5), b"")  # its vector is gone
    catalog.put("i50", sid_of(50), attributes_of(50), packed(vectors[3:4])[0])  # at the place of i3
    now = np.concatenate([vectors, vectors[3:4]])
    now[4] = -now[4]
    expected = truth(now, query, 60, lambda i: i not in ("i3", "i5"))
    assert_same(found_in(catalog, query, 60), expected)
    assert catalog.vectors.num_vectors == 49
    assert catalog.lacks_vectors


def test_a_loaded_catalog_finds_what_an_edited_one_finds():
    vectors = clustered(100)
    entries = [
        TrieEntry(f"i{number}", sid_of(number), attributes_of(number), value)
        for number, value in enumerate(packed(vectors))
    ]
    entries[7] = entries[7]._replace(vector=b"")
    loading = Loading(SPEC, DIM)
    loading.add(sorted(entries, key=lambda entry: entry.sid))
    loaded = Catalog(SPEC, vector_dim=DIM)
    loaded.adopt(loading.end())
    query = quantized(clustered(1, 9))[0]
    assert_same(found_in(loaded, query, 100), truth(vectors, query, 100, lambda i: i != "i7"))


async def until(happened):
    """The builder's thread gives way to all others, so a busy machine makes it slow."""
    await catalogs.until(happened, timeout_s=120)


async def built(catalog):
    """The task that builds the graph, after the graph has everything."""
    task = asyncio.create_task(GraphBuilder(catalog, catalog.vectors).run())
    catalog.vectors.changed.set()
    await until(
        lambda: task.done() or (catalog.vectors.recall is not None and not catalog.vectors.num_pending)
    )
    return task


async def ended(task):
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("seed", range(3))
async def test_the_graph_finds_nearly_all_that_an_exact_search_finds(seed):
    vectors = clustered(3_000, seed)
    catalog = catalog_of(vectors, exact_up_to=500)
    exact = catalog_of(vectors)
    task = await built(catalog)
    assert not catalog.vectors.is_exact
    assert catalog.vectors.num_compared < 200 < exact.vectors.num_compared
    assert catalog.vectors.recall >= 0.98
    queries = quantized(clustered(30, seed + 50))
    shares = []
    for query in queries:
        found = found_in(catalog, query, 10)
        expected = found_in(exact, query, 10)
        shares.append(len({i for i, _ in found} & {i for i, _ in expected}) / 10)
    assert np.mean(shares) >= 0.98
    await ended(task)


async def test_filters_and_exclusions_still_give_full_pages_with_a_graph():
    vectors = clustered(2_000)
    catalog = catalog_of(vectors, exact_up_to=100)
    task = await built(catalog)
    query = quantized(clustered(1, 5))[0]
    odd = Filter(categories_any=frozenset({"odd"}))
    near = [item_id for item_id, _ in found_in(catalog, query, 50)]
    page = found_in(catalog, query, 40, odd, near)
    assert len(page) == 40
    assert not {item_id for item_id, _ in page} & set(near)
    assert all(int(item_id[1:]) % 2 for item_id, _ in page)
    few = Filter(item_ids=frozenset(f"i{number}" for number in range(150)))
    assert_same(found_in(catalog, query, 20, few), truth(vectors, query, 20, lambda i: int(i[1:]) < 150))
    await ended(task)


async def test_edits_are_found_before_and_after_the_graph_has_them():
    vectors = clustered(1_500)
    catalog = catalog_of(vectors, exact_up_to=100)
    task = await built(catalog)
    target = quantized(clustered(1, 77))[0]
    (value,) = packed(target.astype(np.float32)[None])
    async with catalog.lock:  # the builder cannot go on
        catalog.put("new", sid_of(1_500), attributes_of(0), value)
        catalog.drop("i0")
        assert catalog.vectors.num_pending == 2
        before = found_in(catalog, target, 5)
        assert before[0] == ("new", pytest.approx(1.0, abs=1e-5))
    await until(lambda: not catalog.vectors.num_pending)
    assert found_in(catalog, target, 5) == before
    own = quantized(vectors[:1])[0]
    assert "i0" not in [item_id for item_id, _ in found_in(catalog, own, 20)]
    await ended(task)


async def test_a_worn_graph_is_replaced_and_its_searches_go_on():
    vectors = clustered(300)
    catalog = catalog_of(vectors, exact_up_to=100)
    task = await built(catalog)
    first = catalog.vectors.active.graph
    turned = packed(-vectors)
    for _ in range(4):
        for number, value in enumerate(turned if _ % 2 == 0 else packed(vectors)):
            catalog.put(f"i{number}", sid_of(number), attributes_of(number), value)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: not catalog.vectors.num_pending and catalog.vectors.building is None)
    await until(lambda: catalog.vectors.active.graph is not first and not catalog.vectors.num_pending)
    query = quantized(clustered(1, 3))[0]
    assert_same(found_in(catalog, query, 10), truth(vectors, query, 10))
    await ended(task)


def test_a_graph_knows_the_newest_row_of_each_place():
    rows = quantized(clustered(64))
    graph = NearestGraph(DIM, rows)
    graph.apply(range(64), list(rows))
    graph.apply([5, 6], [rows[7], None])
    assert len(graph) == 63
    assert set(graph.nearest(rows[7], 2)) == {5, 7}
    assert 6 not in graph.nearest(rows[6], 64)


async def test_near_copies_that_come_one_after_another_need_no_more_candidates():
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(100, 128)), 80, axis=0)
    rows += 0.2 * rng.normal(size=rows.shape)
    catalog = catalog_of(rows.astype(np.float32), exact_up_to=100)
    task = await built(catalog)
    assert catalog.vectors.recall >= RECALL_WANTED
    assert catalog.vectors.active.graph.expansion == EXPANSION_SEARCH
    await ended(task)


async def test_searches_keep_more_candidates_where_the_graph_finds_too_few():
    vectors = np.random.default_rng(0).normal(size=(4_000, 256)).astype(np.float32)  # no two of them alike
    catalog = catalog_of(vectors, exact_up_to=100)
    task = await built(catalog)
    await until(lambda: catalog.vectors.recall is not None)
    index, graph = catalog.vectors, catalog.vectors.active.graph
    assert index.recall >= RECALL_WANTED
    assert graph.expansion > EXPANSION_SEARCH
    queries = index.sample(50, np.random.default_rng(1))
    truths = [index.truth_of(query, 10) for query in queries]
    graph.expansion = EXPANSION_SEARCH
    found = [
        len({*index.nearest(each, 10).places} & {*truth.places})
        for each, truth in zip(queries, truths, strict=True)
    ]
    assert np.mean(found) / 10 < RECALL_WANTED, "the first candidates are too few for these"
    assert index.widen(graph, queries, truths) >= RECALL_WANTED
    await ended(task)


def test_the_candidates_of_a_search_have_an_end():
    vectors = VectorIndex(DIM, exact_up_to=0)
    vectors.load(range(64), [f"i{n}" for n in range(64)], packed(clustered(64)))
    empty = NearestGraph(DIM, vectors.sample(64, np.random.default_rng(0)))  # so it finds nothing
    queries = quantized(clustered(1, 3))
    assert vectors.widen(empty, queries, [vectors.truth_of(queries[0], 10)]) == 0
    assert empty.expansion == MAX_EXPANSION


def test_memory_per_item_is_what_the_documents_say():
    vectors = VectorIndex(128)
    vectors.load(range(65_536), [f"i{n}" for n in range(65_536)], packed(clustered(65_536, dim=128)))
    assert vectors.num_bytes / 65_536 == 128 + 4 + 8
