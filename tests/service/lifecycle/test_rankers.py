"""The ranker of a bundle is verified as it loads, and changes with the bundle while requests are answered."""

import asyncio
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.core.bundle import MANIFEST, RANKER, RECOMMENDER, Manifest, sha256_of
from service.errors import ContractMismatch
from service.lifecycle.bundles import GraphOptions, LoadedBundle, load
from tests.known_bundle import KNOWN_ITEMS, tokenizer_id_of, write_known_bundle
from tests.known_ranker import known_ranker_score, ranker_bundle, ranker_id_of
from tests.service.running import is_problem, running

ADMIN = {"X-API-Key": "an-admin-key-of-this-test"}
TIMEOUT_S = 30
IDS = [each.item_id for each in KNOWN_ITEMS]
CODES = {each.item_id: each.codes for each in KNOWN_ITEMS}
POPULARITY = {each.item_id: each.popularity for each in KNOWN_ITEMS}


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """plain has no ranker; first and second share its tokenizer; other has another tokenizer."""
    folder = tmp_path_factory.mktemp("bundles")
    write_known_bundle(folder / "plain", KNOWN_ITEMS)
    ranker_bundle(folder / "first", KNOWN_ITEMS)
    ranker_bundle(folder / "second", KNOWN_ITEMS, ranker=2)
    ranker_bundle(folder / "other", KNOWN_ITEMS, ranker=3, reader=1)
    ranker_bundle(folder / "damaged", KNOWN_ITEMS, ranker=4)
    (folder / "damaged" / RANKER).write_bytes(b"damaged")
    return folder


def options() -> GraphOptions:
    return GraphOptions(threads=1, num_beams=4, max_batch_beams=None)


def opened(folder: Path) -> LoadedBundle:
    return load(folder, options())


def sealed(folder: Path, **ranker: object) -> Path:
    """With the true hash of its ranker, and changes of what the manifest says of it."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    path = folder / RANKER
    record = manifest.files[RANKER].model_copy(
        update={"sha256": sha256_of(path), "num_bytes": path.stat().st_size}
    )
    assert manifest.ranker is not None
    changes = {
        "files": manifest.files | {RANKER: record},
        "ranker": manifest.ranker.model_copy(update=ranker),
    }
    text = manifest.model_copy(update=changes).model_dump_json()
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return folder


# --- verified as it loads ---


def test_a_bundle_has_a_ranker_if_its_manifest_names_one(bundles):
    assert opened(bundles / "plain").ranker is None
    assert opened(bundles / "first").ranker is not None


def test_a_damaged_or_missing_ranker_is_refused_with_the_remedy(bundles, tmp_path):
    with pytest.raises(ContractMismatch, match=rf"{RANKER}: 7 bytes, manifest says .*Copy it again"):
        opened(bundles / "damaged")
    copy = Path(shutil.copytree(bundles / "first", tmp_path / "copy"))
    (copy / RANKER).unlink()
    with pytest.raises(ContractMismatch, match=rf"{RANKER}: missing\. Copy the whole bundle"):
        opened(copy)


def test_a_graph_with_other_tensors_is_no_ranker(bundles, tmp_path):
    copy = Path(shutil.copytree(bundles / "first", tmp_path / "copy"))
    shutil.copyfile(copy / RECOMMENDER, copy / RANKER)
    with pytest.raises(ContractMismatch, match=rf"{RANKER}: its inputs are .*Export again"):
        opened(sealed(copy))


def test_a_ranker_of_another_tokenizer_is_refused(bundles, tmp_path):
    copy = Path(shutil.copytree(bundles / "first", tmp_path / "copy"))
    with pytest.raises(ContractMismatch, match="ranker was trained for tokenizer dddddddddddd"):
        opened(sealed(copy, trained_for_tokenizer_id="d" * 12))


def test_a_ranker_whose_scores_are_no_numbers_is_refused(bundles, tmp_path):
    copy = Path(shutil.copytree(bundles / "first", tmp_path / "copy"))
    model = onnx.load(copy / RANKER)
    (quarter,) = (each for each in model.graph.initializer if each.name == "quarter")
    quarter.CopyFrom(numpy_helper.from_array(np.array(np.nan, np.float32), "quarter"))
    onnx.save(model, copy / RANKER)
    with pytest.raises(ContractMismatch, match=rf"{RANKER}: gives a score that is not finite\. Export again"):
        opened(sealed(copy))


# --- changed under requests ---


@asynccontextmanager
async def replica(bundles, redis_url, name):
    given = {"bundles_dir": bundles, "admin_keys": (ADMIN["X-API-Key"],), "max_wait_ms": 60_000}
    async with running(bundles / name, redis_url, **given) as client:
        client.headers.update(ADMIN)
        yield client


async def change(client, name):
    answer = await client.post("/admin/bundles", json={"bundle": name})
    assert answer.is_success, answer.text
    return answer.json()


async def rank(client, history=("item-3",)):
    body = {"history": list(history), "item_ids": IDS}
    answer = await client.post("/rank", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def is_of(answer, ranker, codes=CODES):
    """Whether each item has the score of this ranker."""
    return answer["ranker_version"] == ranker_id_of(ranker) and all(
        row["score"]
        == known_ranker_score(
            [codes["item-3"]], codes[row["item_id"]], POPULARITY[row["item_id"]], ranker=ranker
        )
        for row in answer["items"]
    )


async def test_the_ranker_changes_with_the_bundle_and_back_and_all_that_describes_it(bundles, redis_url):
    async with replica(bundles, redis_url, "plain") as client:
        assert (await rank(client))["ranked_by"] == "generator"
        assert is_problem(
            await client.post("/recommend", json={"history": [], "rerank": True}), 409, "no-ranker"
        )
        for name, ranker in (("first", 1), ("second", 2)):
            told = await change(client, name)
            assert told["serving"]["ranker_id"] == ranker_id_of(ranker)
            assert (await client.get("/info")).json()["ranker"]["ranker_id"] == ranker_id_of(ranker)
            answer = await rank(client)
            assert answer["ranked_by"] == "ranker"
            assert is_of(answer, ranker)
            page = (await client.post("/recommend", json={"history": ["item-3"], "rerank": True})).json()
            assert page["ranker_version"] == ranker_id_of(ranker)
            metrics = (await client.get("/metrics")).text
            (shown,) = (line for line in metrics.splitlines() if line.startswith("glyphrec_ranker_info{"))
            assert f'ranker_id="{ranker_id_of(ranker)}"' in shown
        told = await change(client, "plain")
        assert told["serving"]["ranker_id"] is None
        assert (await rank(client))["ranked_by"] == "generator"
        assert "\nglyphrec_ranker_info{" not in (await client.get("/metrics")).text


async def test_a_bundle_with_a_damaged_ranker_changes_nothing_and_is_told(bundles, redis_url):
    async with replica(bundles, redis_url, "first") as client:
        answer = await client.post("/admin/bundles", json={"bundle": "damaged"})
        assert is_problem(answer, 409, "bundle-refused")
        assert RANKER in answer.json()["detail"]
        assert is_of(await rank(client), 1)


async def test_with_a_new_tokenizer_its_own_ranker_reads_the_codes_of_its_catalog(bundles, redis_url):
    async with replica(bundles, redis_url, "first") as client:
        await change(client, "other")
        async with asyncio.timeout(TIMEOUT_S):
            while (await client.get("/info")).json()["tokenizer_id"] != tokenizer_id_of(1):
                await asyncio.sleep(0.02)
        answer = await rank(client)
        codes = {
            row["item_id"]: tuple(map(int, row["semantic_id"].split("-")))[:-1] for row in answer["items"]
        }
        assert len(answer["items"]) == len(IDS)
        assert is_of(answer, 3, codes)


async def test_an_answer_during_a_change_is_all_of_one_ranker(bundles, redis_url):
    async with replica(bundles, redis_url, "first") as client:
        answers = []
        is_over = asyncio.Event()

        async def ask():
            while not is_over.is_set():
                answers.append(await rank(client))

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for name in ("second", "first", "second"):
            await change(client, name)
            enough = len(answers) + 4
            async with asyncio.timeout(TIMEOUT_S):
                while len(answers) < enough:
                    await asyncio.sleep(0.005)
        is_over.set()
        await asyncio.gather(*asking)
        found = [[ranker for ranker in (1, 2) if is_of(answer, ranker)] for answer in answers]
        assert {tuple(each) for each in found} == {(1,), (2,)}
        assert found[-1] == [2]
