"""Readable codes: the first code is the given one, and the codes below divide what it leaves."""

from functools import partial

import numpy as np
import pytest
import torch

from model_export.configs import GaoqConfig, LetterConfig, QuantizerConfig, ReadableConfig, RqKMeansConfig
from model_export.data.item_fields import field_as_codes
from model_export.quantizers.choose import learns_from_purchases, train_quantizer, versions_of_quantizer
from model_export.quantizers.collisions import treat_collisions
from model_export.quantizers.readable import with_first_codes
from service.core.item_fields import UNKNOWN
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(4, 4, 3))
SHORT = QuantizerConfig(hidden_dims=(16,), latent_dim=4, num_epochs=10, batch_size=16, settle_epochs=4)
INNER = [RqKMeansConfig(), SHORT, GaoqConfig(), LetterConfig(rq_vae=SHORT, num_groups=2)]
KINDS = np.arange(40) % 3  # nobody has code 3


def vectors() -> np.ndarray:
    """Items far apart by kind, and with a direction of their own beside it."""
    rng = np.random.default_rng(0)
    return (10.0 * np.eye(6)[KINDS] + rng.normal(size=(40, 6))).astype(np.float32)


def trained(config=None):
    return train_quantizer(
        with_first_codes(vectors(), KINDS), SPEC, ReadableConfig(config or RqKMeansConfig()),
        seed=0, collaborative=vectors(), progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("config", INNER, ids=lambda config: type(config).__name__)
def test_the_first_code_is_given_and_the_others_come_from_the_vector_alone(config):
    model, report = trained(config)
    data = torch.from_numpy(with_first_codes(vectors(), KINDS))
    with torch.no_grad():
        codes = model.encode(data)
        assert codes[:, 0].tolist() == KINDS.tolist()
        assert torch.equal(torch.cat([model.encode(row[None]) for row in data]), codes)
        assert model.decode(codes).shape == (40, 6)
        assert model.latents(data).shape == (40, model.codebooks[-1].shape[1])
    assert [len(codebook) for codebook in model.codebooks] == [4, 4, 3]
    assert report.history[-1].use[0] == 0.75


def test_codes_below_do_not_spend_themselves_on_the_category():
    model, _ = trained()
    with torch.no_grad():
        data = torch.from_numpy(with_first_codes(vectors(), KINDS))
        error = float((model.decode(model.encode(data)) - data[:, :-1]).square().mean())
        inner = model.inner.decode(model.inner.encode(torch.zeros(1, 6)))
    assert error < 1.0, "the deviation inside a kind is 1, and the kinds are 10 apart"
    assert inner.norm() < 3.0


def test_an_item_without_a_known_value_has_the_code_of_the_rest():
    model, _ = trained()
    with torch.no_grad():
        found = model.encode(torch.from_numpy(with_first_codes(vectors()[:2], np.array([UNKNOWN, 3]))))
    assert found[:, 0].tolist() == [UNKNOWN, 3]


def test_collisions_are_treated_below_the_first_codes():
    model, _ = trained(RqKMeansConfig())
    data = torch.from_numpy(with_first_codes(vectors(), KINDS))
    with torch.no_grad():
        before, latents = model.encode(data).numpy(), model.latents(data).numpy()
    codebooks = [codebook.numpy() for codebook in model.codebooks]
    treated = treat_collisions("zcr", before, latents, codebooks, [f"i{n}" for n in range(40)])
    assert (treated.codes[:, :-1] == before[:, :-1]).all()
    assert treated.report.rate_after <= treated.report.rate_before
    assert treated.spec.levels == SPEC.levels


def test_one_level_leaves_nothing_to_learn():
    with pytest.raises(ValueError, match="no level is left below the first. Give two or more"):
        train_quantizer(
            with_first_codes(vectors(), KINDS), SidSpec(levels=(4,)), ReadableConfig(), seed=0, progress=False
        )


def test_versions_and_purchases_are_those_of_the_quantizer_inside():
    assert {"readable", "rq_kmeans", "fields"} == versions_of_quantizer(
        ReadableConfig(RqKMeansConfig())
    ).keys()
    assert learns_from_purchases(ReadableConfig(LetterConfig()))
    assert not learns_from_purchases(ReadableConfig())


def shop(num_items: int = 48) -> list[dict]:
    """Two wide categories of four narrow ones of two each, and brands of which the first is most frequent."""
    return [
        {
            "item_id": f"i{n}",
            "title": "x",
            "brand": f"Brand {0 if n % 2 else n % 12}",
            "categories": [f"A{n % 2}", f"B{n % 8}", f"C{n % 16}"],
        }
        for n in range(num_items)
    ]


codes_of = partial(field_as_codes, shop())


def test_the_category_is_the_deepest_level_that_fits_into_the_first_codes():
    assert codes_of("category", 17).vocabulary.names == ("categories.3",)
    assert codes_of("category", 16).vocabulary.names == ("categories.2",)
    assert codes_of("category", 8).vocabulary.names == ("categories.1",)
    found = codes_of("category", 9)
    assert found.numbers.shape == (48, 1)
    assert sorted({*found.numbers[:, 0].tolist()}) == list(range(1, 9))


def test_of_too_many_values_the_most_frequent_have_a_code_and_the_others_are_the_rest():
    found = codes_of("brand", 3)
    assert found.vocabulary.num_values == (3,)
    assert found.vocabulary.read({"brand": "BRAND 0"}).tolist() == [1]
    assert (found.numbers[:, 0] == UNKNOWN).sum() == 48 - 24 - 4 - 4
    assert codes_of("category", 2).vocabulary.num_values == (2,), "even of the first level"
