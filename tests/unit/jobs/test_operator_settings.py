import sys
from pathlib import Path

import pytest

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.settings import Settings


def test_variables_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('cpu_slots = 2\nimages = ["a", "b"]\nrequire_digest = true\n')
    settings = Settings.load({"M2F_HOME": str(tmp_path), "M2F_CPU_SLOTS": "3"})
    assert (settings.cpu_slots, settings.images, settings.require_digest) == (3, ("a", "b"), True)
    assert (settings.home, settings.platform, settings.gpus) == (tmp_path, "local", "auto")


def test_without_a_home_the_users_data_folder_is_taken(tmp_path: Path) -> None:
    assert Settings.load({"HOME": str(tmp_path)}).home.is_absolute()


def test_settings_survive_the_way_to_another_process(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        engine_command=("python", "an engine.py"),
        images=("x",),
        gpus="GPU-1,GPU-2",
        require_digest=True,
        cancel_grace_s=2.5,
        skill_dir=tmp_path,
    )
    assert Settings.load(settings.environment({"M2F_CPU_SLOTS": "7", "PATH": "/bin"})) == settings


def test_the_engine_command_is_words_or_a_list_and_defaults_to_our_engine(tmp_path: Path) -> None:
    home = {"M2F_HOME": str(tmp_path)}
    assert Settings.load(home).engine == (sys.executable, "-m", "mask2former_mcp.engine")
    assert Settings.load({**home, "M2F_ENGINE_COMMAND": "python 'my engine.py'"}).engine == ("python", "my engine.py")
    assert Settings.load({**home, "M2F_ENGINE_COMMAND": '["a", "b c"]'}).engine == ("a", "b c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CPU_SLOTS", "0"),
        ("CPU_SLOTS", "two"),
        ("REQUIRE_DIGEST", "maybe"),
        ("RUNTIME", "rocket"),
        ("POLL_S", "nan"),
        ("CANCEL_GRACE_S", "-1"),
        ("ENGINE_IMAGE", "My Image"),
        ("ENGINE_IMAGE", "Engine:latest"),
        ("ENGINE_IMAGE", "engine:"),
        ("ENGINE_IMAGE", "/engine"),
        ("IMAGES", "ok https://host/name"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=f"M2F_{name} = '{value}'"):
        Settings.load({"M2F_HOME": str(tmp_path), f"M2F_{name}": value})


@pytest.mark.parametrize("text", ["cpu_slot = 1", "cpu_slots = ", "cpu_slots = 1.5"])
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InvalidRequest, match=r"config\.toml"):
        Settings.load({"M2F_HOME": str(tmp_path)})


def test_a_file_that_is_no_text_and_a_home_that_is_no_folder_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidRequest, match=r"config\.toml"):
        Settings.load({"M2F_HOME": str(tmp_path)})
    with pytest.raises(InvalidRequest, match="not a folder"):
        Settings.load({"M2F_HOME": str(file)})


@pytest.mark.parametrize(
    "image",
    [
        "mask2former-engine:latest", "m2f-base", "localhost:5000/a/b_c__d-e.f:V1.2-x", f"name@sha256:{'0f' * 32}",
        "nvcr.io/nvidia/tao/tao-toolkit:7.1.0-pyt", f"sha256:{'0f' * 32}", "Registry.example.com/a:1",
    ],
)  # fmt: skip
def test_every_way_to_name_an_image_is_taken(tmp_path: Path, image: str) -> None:
    settings = Settings.load({"M2F_HOME": str(tmp_path), "M2F_ENGINE_IMAGE": image, "M2F_IMAGES": image})
    assert (settings.engine_image, settings.images) == (image, (image,))
