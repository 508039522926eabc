import pytest
import yaml

from contimg.config import GENERATED, Config, from_mapping, load, parse_flux_jy
from contimg.errors import ConfigError
from contimg.store.identity import science_digest


def test_files_in_config_are_what_the_models_say():
    for path, text in GENERATED.items():
        assert path.read_text() == text(), f"{path} has drifted: run python -m contimg.config"


def test_the_default_file_is_the_defaults():
    assert load() == Config()


@pytest.mark.parametrize(
    ("text", "jy"), [("0.1mJy", 1e-4), ("50 uJy", 5e-5), ("2Jy", 2), (0.3, 0.3), ("1e-4 Jy", 1e-4)]
)
def test_flux_units(text, jy):
    assert parse_flux_jy(text) == pytest.approx(jy)


@pytest.mark.parametrize("text", ["0.1m", "0.1 K", "Jy", True, "1 mJy/beam"])
def test_what_is_no_flux_is_refused(text):
    with pytest.raises(ValueError, match="not a flux density"):
        parse_flux_jy(text)


def test_every_wrong_key_is_named():
    with pytest.raises(ConfigError) as caught:
        from_mapping({"imaging": {"imsiz": 100, "robust": 9}, "paths": {"incoming": "x"}})
    assert "imaging.imsiz" in str(caught.value)
    assert "imaging.robust" in str(caught.value)


def test_digest_is_of_the_science_only(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        yaml.safe_dump({"paths": {"incoming": "elsewhere"}, "ingest": {"order": "newest"}})
    )
    assert science_digest(load([mine])) == science_digest(load())
    mine.write_text(yaml.safe_dump({"imaging": {"robust": 0.5}}))
    assert science_digest(load([mine])) != science_digest(load())
    assert load([mine]).imaging.imsize == load().imaging.imsize


def test_times_need_no_quotes(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "ingest: {start: 2026-01-25, end: 2026-01-26T12:00:00, groups: [2026-01-25T22:26:05]}"
    )
    ingest = load([mine]).ingest
    assert (ingest.start, ingest.end, ingest.groups) == (
        "2026-01-25T00:00:00",
        "2026-01-26T12:00:00",
        ("2026-01-25T22:26:05",),
    )
