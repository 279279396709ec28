"""Encoded pictures become pixels as Pillow shows them: EXIF rotation, channels, bit depth."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from vit_keras.export import to_saved_model
from vit_keras.export.saved_model import decode_picture, orientation, upright
from vit_keras.pipelines.pictures import read_picture

PREVIEW = b"II*\0\x08\0\0\0" + b"\0\0" + b"\x0e\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + bytes(4)
"""A TIFF block whose first directory is empty and whose second, the preview's, says 6."""


def smooth(height=20, width=32):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 7, y * 9, (x + y) * 4], axis=-1).astype("uint8"))


def encoded(image, suffix="PNG", value=None, order="<", **options):
    """A picture file's content, with an EXIF block in a byte order where an orientation is given."""
    buffer = io.BytesIO()
    if value is not None:
        exif = Image.Exif()
        exif.endian = order
        exif[0x010F], exif[0x0112], exif[0x011A] = "A maker", value, 72.0
        options["exif"] = exif
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
@pytest.mark.parametrize("value", range(1, 9))
def test_pictures_stand_upright_as_in_pillow(order, suffix, value):
    content = encoded(smooth(), suffix, value, order)
    marker = content.index(b"Exif\0\0") + 6 if suffix == "JPEG" else content.index(b"eXIf") + 4
    assert content[marker : marker + 2] == (b"II" if order == "<" else b"MM")
    assert int(orientation(tf.constant(content))) == value
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert expected.shape == ((20, 32, 3) if value < 5 else (32, 20, 3))
    found = decode_picture(tf.constant(content), expected.shape[:2]).numpy()
    assert np.abs(found - expected).max() <= (0 if suffix == "PNG" else 8)
    np.testing.assert_array_equal(read_picture(content), found)


def test_the_saved_model_turns_pictures_too(model, tmp_path):
    served = tf.saved_model.load(str(to_saved_model(model, tmp_path / "saved")))
    picture = smooth(8, 8)
    contents = [encoded(picture, "PNG", value) for value in (1, 3, 6)]
    logits = served.signatures["serving_bytes"](encoded=tf.constant(contents))["logits"].numpy()
    turned = [picture.transpose(Image.Transpose[f"ROTATE_{angle}"]) for angle in (180, 270)]
    expected = model.predict(np.stack([picture, *turned]).astype("float32"), verbose=0)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert min(np.abs(logits[0] - logits[i]).max() for i in (1, 2)) > 1e-3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Exif",
        b"Exif\0\0",
        b"Exif\0\0II",
        encoded(smooth()),
        encoded(smooth(), "JPEG"),
        encoded(smooth(), "GIF"),
        encoded(smooth(), "BMP"),
        encoded(smooth(), "JPEG", 0),
        encoded(smooth(), "JPEG", 9),
        encoded(smooth(), "JPEG", 6)[:60].replace(b"\x08\0\0\0", b"\xff\xff\xff\xff"),
        b"\xff\xd8\xff\xe1\0\x40Exif\0\0" + PREVIEW,
        b"\xff\xd8" + bytes(8000) + encoded(smooth(), "JPEG", 6),  # Behind the head: no longer a file's own block.
        "naïve Exif\0\0 çé".encode("latin-1") * 50,
    ],
)
def test_what_says_nothing_is_upright(content):
    assert int(orientation(tf.constant(content))) == 1


def test_the_block_need_not_come_first():
    content = encoded(smooth(), "JPEG", 8, icc_profile=bytes(range(200)) * 2, comment="II*Exif")
    assert int(orientation(tf.constant(content))) == 8


def test_turning_inside_a_graph_and_of_any_channels():
    pixels = np.arange(2 * 3 * 4, dtype="uint8").reshape(2, 3, 4)
    turn = tf.function(upright, input_signature=[tf.TensorSpec((None, None, 4), tf.uint8), tf.TensorSpec((), tf.int32)])
    np.testing.assert_array_equal(turn(pixels, 1), pixels)
    np.testing.assert_array_equal(turn(pixels, 6), np.rot90(pixels, -1))
    np.testing.assert_array_equal(turn(pixels, 8), np.rot90(pixels))
    np.testing.assert_array_equal(turn(pixels, 7), np.rot90(pixels, 2).transpose(1, 0, 2))


def test_an_upright_picture_is_passed_through_by_two_conditions():
    """Neither the directory's entries nor the turns are computed for it."""
    graph = tf.function(lambda e: upright(tf.io.decode_png(e, channels=3), orientation(e))).get_concrete_function(
        tf.TensorSpec((), tf.string)
    )
    operators = [operator.type for operator in graph.graph.get_operations()]
    assert not {"Transpose", "Reverse", "ReverseV2", "DecodeRaw", "GatherV2", "RegexReplace"} & set(operators)
    assert sum(operator in ("If", "StatelessIf") for operator in operators) == 2


@pytest.mark.parametrize("mode", ["I;16", "L", "LA", "P", "RGBA", "1"])
@pytest.mark.parametrize("value", [1, 6])
def test_channels_and_depth_of_turned_pictures(mode, value):
    image = smooth()
    if mode == "I;16":
        image = Image.fromarray(np.arange(20 * 32, dtype="uint16").reshape(20, 32) * 100)
    else:
        image = image.quantize(16) if mode == "P" else image.convert(mode)
    found = read_picture(encoded(image, "PNG", value)).astype(int)
    gray = np.asarray(image) >> 8 if mode == "I;16" else None
    expected = np.asarray(image.convert("RGB")) if gray is None else np.repeat(gray[..., None], 3, axis=2)
    expected = np.rot90(expected, -1) if value == 6 else expected
    assert np.abs(found - expected).max() <= (1 if mode == "I;16" else 0)


@pytest.mark.parametrize("value", [1, 6])
def test_turned_cmyk(value):
    image = smooth().convert("CMYK")
    expected = np.asarray(image.convert("RGB")).astype(int)
    expected = np.rot90(expected, -1) if value == 6 else expected
    assert np.abs(read_picture(encoded(image, "JPEG", value, quality=95)) - expected).mean() <= 2
