import pytest

from certdef.config.job import ConfigError, RunConfig, preset_names
from certdef.config.load import explain, load_config
from certdef.config.noise_laws import noise_law
from certdef.data.sets import data_root, load_data


def test_defaults_are_the_digits_preset():
    assert load_config("digits") == RunConfig()


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_resolves_to_its_own_name(preset):
    assert load_config(preset).preset == preset


def test_file_then_overrides(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("certify: {n: 3000, alpha: 0.01}\nattack: {eps: [0.05]}\n")
    config = load_config(file=path, certify__n=4000, seed=3)
    assert (config.certify.n, config.certify.alpha, config.attack.eps, config.seed) == (
        4000,
        0.01,
        (0.05,),
        3,
    )
    assert config.certify.n0 == RunConfig().certify.n0


def test_the_printed_file_reads_back_as_the_same_configuration(tmp_path):
    from certdef.cli import as_yaml

    config = load_config("fashion-mnist", certify__alpha=0.01)
    (tmp_path / "all.yaml").write_text(as_yaml(config))
    assert load_config(file=tmp_path / "all.yaml") == config


BAD = [
    ({"certify__alpha": 2}, "certify.alpha", "0.001"),
    ({"certify__alpha": 0}, "certify.alpha", "0.001"),
    ({"certify__n": 5}, "certify.n", "n=10"),
    ({"certify__nn": 5}, "certify.nn", "'certify.n'"),
    ({"certfy": 5}, "certfy", "'certify'"),
    ({"device": "tpu"}, "tpu", "cpu or cuda"),
    ({"ledger__training": 0}, "ledger.training", "at least 1"),
    ({"ledger__training": 20}, "ledger.training", "first batch"),
    ({"ledger__attack": -1}, "ledger.attack", "at least 1"),
    ({"attack__eps": [8]}, "attack.eps", "8/255"),
    ({"nim__heads": 5}, "nim.heads", "multiple"),
    ({"certify__laws": []}, "certify.laws", "at least one"),
    ({"certify__laws": [{"label": "a", "scale_255": 0}]}, "scale_255", "8-bit"),
    ({"certify__n": "many"}, "certify.n", "many"),
    ({"preset": "digts"}, "digts", "did you mean 'digits'"),
]


@pytest.mark.parametrize(("values", "name", "remedy"), BAD, ids=[str(case[0]) for case in BAD])
def test_bad_values_are_named_with_a_remedy(values, name, remedy):
    with pytest.raises(ConfigError) as error:
        load_config(**values)
    assert name in str(error.value)
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_keys_in_a_file(tmp_path):
    path = tmp_path / "bad.yaml"
    for text, key in [
        ("certify: {alhpa: 0.1}", "alhpa"),
        ("certify: {laws: [{label: a, scael_255: 1}]}", "scael_255"),
        ("sede: 1", "sede"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"unknown key '.*{key}' \(did you mean"):
            load_config(file=path)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(file="nowhere.yaml")


def test_explain_keeps_other_messages_on_one_line():
    assert explain('Parser key "a":\n  Expected a number', []) == '"a": Expected a number'


def test_unknown_law_family():
    from dataclasses import replace

    with pytest.raises(ConfigError, match=r"no continuous scipy\.stats law"):
        noise_law(replace(RunConfig().certify.laws[0], family="gama"))
    with pytest.raises(ConfigError, match="law 'nim'"):
        noise_law(replace(RunConfig().certify.laws[0], shape=(1.0, 2.0, 3.0)))


def test_data_errors(tmp_path, monkeypatch):
    from dataclasses import replace

    data = RunConfig().data
    with pytest.raises(ConfigError, match="unknown data set 'mnist'"):
        load_data(replace(data, name="mnist"), 0)
    with pytest.raises(ConfigError, match=r"data\.pool_images is 9999"):
        load_data(replace(data, pool_images=9999), 0)
    monkeypatch.delenv("CERTDEF_DATA_ROOT", raising=False)
    with pytest.raises(ConfigError, match="CERTDEF_DATA_ROOT"):
        data_root(replace(data, root=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="idx files"):
        load_data(replace(data, name="fashion-mnist", root=str(tmp_path)), 0)


def test_passwords_in_addresses_are_not_published():
    config = load_config(tracking__uri="postgresql://me:hunter2@db/mlflow")
    assert "hunter2" in config.tracking.uri
    assert "hunter2" not in str(config.public_dict())
    assert config.public_dict()["tracking"]["uri"] == "postgresql://…@db/mlflow"
    assert config.public_dict() == config.to_dict() | {"tracking": config.public_dict()["tracking"]}
