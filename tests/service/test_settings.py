import pytest

from service import settings as settings_module
from service.core.cpus import UsableCpus
from service.core.filters import DeclaredFields
from service.core.keys import hash_of
from service.core.secret_files import FILE_VARIABLES, MAX_BYTES
from service.settings import BadSettings, Settings, load_settings
from tests.service.core.test_service_links import OF_A_SERVICE, OF_ANOTHER

KEY = "a-key-of-some-length"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GLYPHREC_{name.upper()}", raising=False)
    for name in ("REDIS_URL", *FILE_VARIABLES):
        monkeypatch.delenv(name, raising=False)


def test_the_environment_is_read_and_arguments_go_before_it(monkeypatch):
    monkeypatch.setenv("GLYPHREC_BUNDLE", "/from/environment")
    monkeypatch.setenv("GLYPHREC_PORT", "9000")
    settings = load_settings(port=9001, host=None)
    assert (str(settings.bundle), settings.port, settings.host) == ("/from/environment", 9001, "127.0.0.1")


def test_a_field_of_another_name_than_its_own_is_a_mistake_and_the_close_one_is_named(monkeypatch):
    monkeypatch.setenv("GLYPHREC_ALOW_ANONYMOUS", "true")
    with pytest.raises(BadSettings, match="GLYPHREC_ALOW_ANONYMOUS: .* GLYPHREC_ALLOW_ANONYMOUS"):
        load_settings(bundle="b")


def test_what_kubernetes_injects_is_no_setting_and_the_port_keeps_its_default(monkeypatch):
    for name, value in (OF_A_SERVICE | OF_ANOTHER).items():
        monkeypatch.setenv(name, value)
    assert load_settings(bundle="b").port == 8000
    monkeypatch.setenv("GLYPHREC_PORT", "9000")  # a container's own variable replaces the injected one
    assert load_settings(bundle="b").port == 9000
    monkeypatch.setenv("GLYPHREC_PORT", "tcp:")
    with pytest.raises(BadSettings, match="^GLYPHREC_PORT: "):
        load_settings(bundle="b")


@pytest.mark.parametrize(
    ("affinity", "quota", "threads"), [(32, 2.0, 1), (8, 64.0, 4), (8, 0.5, 1), (64, 6.5, 3)]
)
def test_a_graph_has_half_of_the_processors_that_this_process_may_use(monkeypatch, affinity, quota, threads):
    monkeypatch.setattr(settings_module, "usable_cpus", lambda: UsableCpus(affinity, quota))
    assert load_settings(bundle="b").threads == threads
    assert load_settings(bundle="b", threads=7).threads == 7


def test_an_empty_variable_is_not_set(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.setenv(f"GLYPHREC_{name.upper()}", "")
    monkeypatch.setenv("REDIS_URL", "")
    settings = load_settings(bundle="b")
    assert (settings.port, settings.bundles_dir, settings.redis_url) == (8000, None, None)


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_a_time_is_a_finite_number(monkeypatch, value):
    for variable in ("GLYPHREC_HEAD_TIMEOUT_S", "GLYPHREC_ATTRIBUTION_S", "GLYPHREC_STOP_DELAY_S"):
        monkeypatch.setenv(variable, value)
        with pytest.raises(BadSettings, match=variable):
            load_settings(bundle="b")
        monkeypatch.delenv(variable)


def test_a_missing_bundle_is_said_in_one_line():
    with pytest.raises(BadSettings, match="^GLYPHREC_BUNDLE: not set$"):
        load_settings()


@pytest.mark.parametrize("variable", ["GLYPHREC_REDIS_URL", "REDIS_URL"])
def test_both_names_of_the_redis_url_are_understood(monkeypatch, variable):
    monkeypatch.setenv(variable, "redis://somewhere:6379/0")
    assert load_settings(bundle="b").redis_url == "redis://somewhere:6379/0"
    assert load_settings(bundle="b", redis_url="redis://here").redis_url == "redis://here"


@pytest.mark.parametrize("url", ["redis://:pass@host:port/0", "redis://[host", "redis://:pass/word@host:1/0"])
def test_a_redis_url_that_cannot_be_read_is_refused_and_not_echoed(url):
    with pytest.raises(BadSettings, match="^GLYPHREC_REDIS_URL: host or port") as refused:
        load_settings(bundle="b", redis_url=url)
    assert "pass@" not in str(refused.value)
    assert "'pass'" not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_it_refuses_to_listen_to_others_without_keys(host):
    with pytest.raises(BadSettings, match="GLYPHREC_API_KEYS"):
        load_settings(bundle="b", host=host)
    assert load_settings(bundle="b", host=host, allow_anonymous=True).host == host
    for keys in ("read_keys", "api_keys", "admin_keys"):
        assert load_settings(bundle="b", host=host, **{keys: (KEY,)}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    assert load_settings(bundle="b", host=host).host == host


@pytest.mark.parametrize("variable", ["READ_KEYS", "API_KEYS", "ADMIN_KEYS"])
def test_keys_come_separated_by_commas_plain_or_hashed_and_are_kept_as_hashes(monkeypatch, variable):
    monkeypatch.setenv(f"GLYPHREC_{variable}", f" {KEY}-1, {hash_of(KEY + '-2')} ,")
    settings = load_settings(bundle="b", redis_url="redis://:secret@host")
    assert getattr(settings, variable.lower()) == (hash_of(f"{KEY}-1"), hash_of(f"{KEY}-2"))
    assert KEY not in str(settings.model_dump())
    assert "sha256" not in repr(settings)
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    "key",
    [
        *("short", "spaces are not allowed", "ключ-из-букв-не-ASCII"),
        *("sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:" + "G" * 64, "sha256:" + "A" * 64),
    ],
)
def test_a_key_that_is_weak_or_cannot_travel_or_is_no_hash_is_refused_and_not_echoed(key):
    with pytest.raises(BadSettings) as refused:
        load_settings(bundle="b", api_keys=(key,))
    assert key not in str(refused.value)


def test_one_key_cannot_have_two_scopes_however_it_is_spelled():
    with pytest.raises(BadSettings, match="twice"):
        load_settings(bundle="b", api_keys=(KEY,), read_keys=(KEY,))
    with pytest.raises(BadSettings, match="twice"):
        load_settings(bundle="b", api_keys=(KEY,), admin_keys=(hash_of(KEY),))


def test_a_value_out_of_range_names_its_variable():
    with pytest.raises(BadSettings, match="^GLYPHREC_PORT: "):
        load_settings(bundle="b", port=70_000)


def test_every_setting_says_what_it_is():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_fields_for_filters_come_with_their_kinds(monkeypatch):
    assert load_settings(bundle="b").filter_fields == DeclaredFields()
    monkeypatch.setenv("GLYPHREC_FILTER_FIELDS", "brand:text, price:number")
    assert load_settings(bundle="b").filter_fields.kinds == {"brand": "text", "price": "number"}


@pytest.mark.parametrize("fields", ["brand", "brand:words", "a:text,a:text", "available:boolean"])
def test_a_bad_declaration_of_fields_names_its_variable(monkeypatch, fields):
    monkeypatch.setenv("GLYPHREC_FILTER_FIELDS", fields)
    with pytest.raises(BadSettings, match="^GLYPHREC_FILTER_FIELDS: '"):
        load_settings(bundle="b")


@pytest.mark.parametrize("level", ["info", "Info", "INFO"])
def test_the_words_of_the_log_may_be_in_any_letters(monkeypatch, level):
    monkeypatch.setenv("GLYPHREC_LOG_LEVEL", level)
    monkeypatch.setenv("GLYPHREC_LOG_FORMAT", "JSON")
    assert (load_settings(bundle="b").log_level, load_settings(bundle="b").log_format) == ("INFO", "json")
    monkeypatch.setenv("GLYPHREC_LOG_LEVEL", "loud")
    with pytest.raises(BadSettings, match="GLYPHREC_LOG_LEVEL: .*'DEBUG', 'INFO', 'WARNING' or 'ERROR'"):
        load_settings(bundle="b")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_secrets_come_from_files_too(monkeypatch, tmp_path, ending):
    (tmp_path / "keys").write_text(f"{KEY}\n{hash_of('another-key-of-some-length')}{ending}")
    (tmp_path / "url").write_text(f"redis://:a-password@redis:6379/0{ending}")
    monkeypatch.setenv("GLYPHREC_API_KEYS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "url"))
    settings = load_settings(bundle="b", host="0.0.0.0")
    assert settings.api_keys == (hash_of(KEY), hash_of("another-key-of-some-length"))
    assert settings.redis_url == "redis://:a-password@redis:6379/0"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b" \n", "is empty"),
        (b"\xff\xfe" * 20, "is not text in UTF-8"),
        (b"a" * (MAX_BYTES + 1), "bytes, so it is no secret"),
        (b"hunter2", "16 characters or more"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused_and_not_echoed(monkeypatch, tmp_path, content, said):
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    monkeypatch.setenv("GLYPHREC_ADMIN_KEYS_FILE", str(tmp_path / "keys"))
    with pytest.raises(BadSettings, match=f"^GLYPHREC_ADMIN_KEYS(_FILE)?: .*{said}") as refused:
        load_settings(bundle="b")
    assert "hunter2" not in str(refused.value)


def test_a_secret_is_given_in_one_way(monkeypatch, tmp_path):
    (tmp_path / "keys").write_text(KEY)
    monkeypatch.setenv("GLYPHREC_API_KEYS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("GLYPHREC_API_KEYS", "another-key-of-some-length")
    with pytest.raises(BadSettings, match="GLYPHREC_API_KEYS_FILE: GLYPHREC_API_KEYS is set, too"):
        load_settings(bundle="b")
    monkeypatch.setenv("GLYPHREC_API_KEYS", "")
    assert load_settings(bundle="b").api_keys == (hash_of(KEY),)


def test_no_other_setting_comes_from_a_file(monkeypatch):
    monkeypatch.setenv("GLYPHREC_PORT_FILE", "/run/port")
    with pytest.raises(BadSettings, match="GLYPHREC_PORT_FILE: glyphrec has no such setting"):
        load_settings(bundle="b")
