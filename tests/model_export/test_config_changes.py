"""Configurations as users choose them: a name, a file and single settings. What is wrong is one line."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.config_changes import as_toml, chosen, differences
from model_export.configs import (
    RUNS,
    FlattenedConfig,
    GaoqConfig,
    LetterConfig,
    ReadableConfig,
    RqKMeansConfig,
    TigerConfig,
    TreeConfig,
    base,
    demo,
)
from model_export.picture_configs import CardConfig, PicturesConfig
from service.core.sid import SidSpec
from service.errors import GlyphrecError


@pytest.mark.parametrize("name", RUNS)
def test_a_named_configuration_as_a_file_gives_itself_back(name: str, tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(as_toml(RUNS[name]()))
    assert chosen(str(tmp_path / "shop.toml")) == chosen(name) == RUNS[name]()
    assert differences(chosen(name)) == []


def test_a_file_says_what_differs_and_single_settings_come_last(tmp_path: Path) -> None:
    path = tmp_path / "my shop, ~new.toml"
    path.write_text(
        'start = "demo"\nhistory_length = 50\n[training]\nmax_epochs = 20\nlearning_rate = 1\n'
        '[quantizer]\ntype = "letter"\nbeta = 0\n[quantizer.rq_vae]\nhidden_dims = [64]\n'
    )
    config = chosen(str(path), ["training.max_epochs=7", "seed=3"])
    assert config.name == "demo"
    assert (config.history_length, config.seed, config.training.max_epochs) == (50, 3, 7)
    assert config.training.learning_rate == 1.0
    assert isinstance(config.quantizer, LetterConfig)
    assert (config.quantizer.beta, config.quantizer.rq_vae.hidden_dims) == (0.0, (64,))
    assert config.generator == demo().generator
    told = differences(config)
    assert "training.max_epochs = 7 (40)" in told
    assert 'quantizer.type = "letter" ("rq-kmeans")' in told
    assert not any("learning_rate = 0.002" in line for line in told)


def test_settings_on_both_sides_of_a_group_are_one_table_of_the_file(tmp_path: Path) -> None:
    config = replace(base(), quantizer=LetterConfig(alpha=0.5))
    (tmp_path / "letter.toml").write_text(as_toml(config))
    assert chosen(str(tmp_path / "letter.toml")) == config


def test_a_quantizer_inside_another_has_a_type_and_settings_of_its_own(tmp_path: Path) -> None:
    settings = ["quantizer.quantizer.balanced=true", "quantizer.quantizer.type=rq-kmeans"]
    config = chosen("base", [*settings, "quantizer.transform=logistic", "quantizer.type=flattened"])
    inner = RqKMeansConfig(balanced=True)
    assert config.quantizer == FlattenedConfig(quantizer=inner, transform="logistic")
    (tmp_path / "flat.toml").write_text(as_toml(config))
    assert chosen(str(tmp_path / "flat.toml")) == config
    with pytest.raises(GlyphrecError, match=r"quantizer.quantizer.type.*rq-vae, rq-kmeans, letter\."):
        chosen("base", ["quantizer.type=flattened", "quantizer.quantizer.type=flattened"])


def test_readable_codes_have_a_field_and_a_quantizer_below(tmp_path: Path) -> None:
    settings = ["quantizer.type=readable", "quantizer.field=brand", "quantizer.quantizer.type=gaoq"]
    config = chosen("base", settings)
    assert config.quantizer == ReadableConfig(GaoqConfig(), "brand")
    (tmp_path / "readable.toml").write_text(as_toml(config))
    assert chosen(str(tmp_path / "readable.toml")) == config


def test_a_changed_setting_is_told_with_its_new_value_and_the_one_before() -> None:
    changed = replace(base(), history_length=50, precision="float32", sid=SidSpec(levels=(8, 4)))
    assert differences(changed) == [
        "sid.levels = [8, 4] ([64, 64, 32])",
        "history_length = 50 (20)",
        'precision = "float32" ("int8")',
    ]


def test_settings_that_another_type_adds_have_no_value_before() -> None:
    told = differences(replace(base(), quantizer=RqKMeansConfig(balanced=True)))
    assert told[0] == 'quantizer.type = "rq-kmeans" ("rq-vae")'
    assert "quantizer.balanced = true" in told
    # What the type before had and this one has not is not told.
    assert not any("latent_dim" in line for line in told)
    assert "generator.width = 32 (64)" in differences(replace(base(), generator=TreeConfig(width=32)))


def test_a_part_that_is_left_out_is_told_by_its_type_alone() -> None:
    assert differences(replace(base(), opinions=None)) == ['opinions.type = "none" ("weighed")']


def test_photos_are_read_or_not_by_the_type_of_their_group() -> None:
    assert chosen("base", ["pictures.type=photo"]).pictures == PicturesConfig()
    assert chosen("pictures", ["pictures.type=none"]).pictures is None
    assert chosen("pictures", ["pictures.type=card", "pictures.neighbors=none"]).pictures == CardConfig(
        neighbors="none"
    )
    assert 'pictures.type = "card" ("none")' in differences(replace(base(), pictures=CardConfig()))
    with pytest.raises(GlyphrecError, match=r"pictures has no settings, because pictures.type is none"):
        chosen("base", ["pictures.size_px=100"])


def test_a_computed_hash_and_a_name_that_no_configuration_has_are_no_difference() -> None:
    hashed = base().render.model_copy(update={"font_sha256": "0" * 64})
    assert differences(replace(base(), render=hashed)) == []
    assert differences(replace(base(), name="of a study", history_length=50)) == []


def test_settings_of_a_group_are_checked_together_whatever_their_order() -> None:
    page = ["render.height_px=512", "render.lines_per_strip=32"]
    assert chosen("base", page).render == chosen("base", page[::-1]).render
    assert chosen("base", page).render.line_px == 16


@given(st.sampled_from(sorted(RUNS)), st.sampled_from(sorted(RUNS)))
def test_applying_the_differences_gives_the_configuration_back(one: str, other: str) -> None:
    """What the report names is enough to make the same bundle again."""
    ours = replace(RUNS[one](), name=other)
    lines = [line.partition(" (")[0] for line in differences(ours)]
    if not any("encoder.type" in line and "hub" in line for line in lines):  # that names a checkpoint
        assert chosen(other, [line.replace(" = ", "=", 1) for line in lines]) == ours


def test_another_type_starts_from_its_defaults_whatever_the_order_of_the_settings() -> None:
    config = chosen("base", ["generator.dropout=0.3", "generator.type=tiger"])
    assert config.generator == TigerConfig(dropout=0.3)
    assert config.opinions is None  # they are weighed for `tree` alone
    assert chosen("base", ["generator.type=tree"]) == base()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.epochs=3"], r"no setting 'training.epochs'. The settings of training are max_epochs, "),
        (["epochs=3"], r"no setting 'epochs'. The settings are sid, "),
        (["name=x"], "no setting 'name'"),
        (["render.font_sha256=x"], "no setting 'render.font_sha256'"),
        (["training=3"], "training is a group of settings. Set one of training.max_epochs, "),
        (["seed.high=3"], "seed.high: seed is one setting without parts"),
        (["training.max_epochs"], r"--set training.max_epochs: write it as in training.max_epochs=20"),
        (["training.max_epochs=many"], 'training.max_epochs = "many": input should be a valid integer'),
        (["training.max_epochs=0"], "training.max_epochs = 0: must be above 0"),
        (["training.learning_rate=-1"], "must be a finite number that is not negative"),
        (["training.learning_rate=inf"], "must be a finite number that is not negative"),
        (["seed=-1"], "seed = -1: must be"),
        (["seed=4294967296"], "must be at most"),
        (["history_length=true"], "history_length = true: input should be a valid integer"),
        (["generator.dropout=1"], "must be at most 0.95"),
        (["generator.width=63"], "must be a multiple of generator.num_heads, 2"),
        (["sid.levels=[64, 0]"], "sid.levels"),
        (
            ["render.height_px=512"],
            "render.height_px = 512: value error, 1 lines do not share height_px=512 in whole pixels",
        ),
        (["render.height_px=16", "render.width_px=9"], "render.width_px = 9: input should be greater than"),
        (["precision=int4"], "precision = \"int4\": input should be 'float32' or 'int8'"),
        (["generator.type=bert"], 'generator.type = "bert": choose one of tree, tree-hashed, tiger, sasrec'),
        (["encoder.type=hub"], "start from donut-base"),
        (
            ["opinions.type=none", "opinions.max_users=3"],
            "opinions has no settings, because opinions.type is none",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_ones_there_are(settings: list[str], said: str) -> None:
    with pytest.raises(GlyphrecError) as refused:
        chosen("base", settings)
    assert said.replace("\\", "") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a = ", "shop.toml: not TOML"),
        ('start = "huge"', "there is no configuration 'huge'. Choose one of tiny, demo, base"),
        (None, "shop.toml: No such file or directory. Check the path."),
    ],
)
def test_a_wrong_file_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "shop.toml").write_text(content)
    with pytest.raises(GlyphrecError) as refused:
        chosen(str(tmp_path / "shop.toml"))
    assert said in str(refused.value)
