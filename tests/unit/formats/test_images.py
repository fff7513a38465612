from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former_mcp.formats import images
from mask2former_mcp.formats.fault import FormatError

PURE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255)]
RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_grey_palette_alpha_two_colour_and_print_images_become_the_rgb_that_they_show(
    tmp_path: Path, mode: str
) -> None:
    if mode in ("L", "LA"):
        shown = np.dstack([RAMP] * 3)
    elif mode == "1":
        shown = np.dstack([np.where(RAMP > 100, 255, 0).astype(np.uint8)] * 3)
    else:  # a row of pure colours, which palettes and inks hold exactly
        shown = np.broadcast_to(np.array(PURE, dtype=np.uint8)[:, None], (6, 8, 3)).copy()
    image = Image.fromarray(shown)
    made = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=6) if mode == "P" else image.convert(mode)
    path = save(tmp_path / f"a{'.tif' if mode == 'CMYK' else '.png'}", made)
    with Image.open(path) as stored:
        assert stored.mode == mode
    found = images.read(path)
    assert found.dtype == np.uint8
    assert (found == shown).all()


def test_sixteen_bit_values_are_scaled_not_cut(tmp_path: Path) -> None:
    path = save(tmp_path / "deep.png", Image.fromarray((RAMP.astype(np.uint16) << 8) + 7))
    assert (images.read(path)[..., 0] == RAMP).all()


def test_exif_rotation_turns_pixels_and_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", Image.fromarray(np.dstack([RAMP] * 3)), exif=exif, quality=95)
    assert images.size(path) == (6, 8)
    assert images.probe(path) == (6, 8)
    assert images.read(path).shape == (8, 6, 3)


def test_a_transparent_palette_is_read_without_a_complaint(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(RAMP).convert("P").save(path, transparency=bytes(range(256)))
    images.read(path)
    assert not [w for w in recwarn if "Palette" in str(w.message)]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_file_is_found_by_decoding_and_named(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert images.size(cut) == (64, 64)
    for function in (images.probe, images.read):
        with pytest.raises(FormatError, match="cut") as caught:
            function(cut)
        assert caught.value.code == "unreadable"


def test_text_in_an_image_file_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    for name, code in (("text.png", "unreadable"), ("none.png", "missing_file")):
        with pytest.raises(FormatError) as caught:
            images.read(tmp_path / name)
        assert caught.value.code == code


def test_floating_point_pixels_are_refused_with_advice(tmp_path: Path) -> None:
    path = save(tmp_path / "f.tif", Image.fromarray(RAMP.astype(np.float32)))
    with pytest.raises(FormatError, match="8 or 16 bit"):
        images.read(path)


def test_listing_is_in_order_and_skips_what_is_no_image(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "._a.png", "note.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in images.listing(tmp_path)] == ["a.png", "b.JPG"]
