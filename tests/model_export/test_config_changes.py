"""Configurations as users choose them: a name, a file and single settings. What is wrong is one line."""

from pathlib import Path

import pytest

from model_export.config_changes import as_toml, chosen, differences
from model_export.configs import RUNS, LetterConfig, TigerConfig, base, demo
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
        (["precision=int4"], "precision = \"int4\": input should be 'float32' or 'int8'"),
        (["generator.type=bert"], 'generator.type = "bert": choose one of tree, tiger, sasrec'),
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
