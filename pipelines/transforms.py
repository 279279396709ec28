"""Changes of pictures as TensorFlow operations: warps, filters, lookup tables, mixing.

What passes over all pixels in many small steps is compiled: XLA makes one pass of them. Each on its own, for XLA
computes a whole chain anew for every pixel that a reversed or gathered picture is read at.
"""

import tensorflow as tf

compiled = tf.function(jit_compile=True, autograph=False)

TABLE_OPS = (
    "auto_contrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "contrast",
    "brightness",
)
"""Operations that give every value of a channel a new one, whatever stands beside it."""
STATISTICAL_OPS = ("auto_contrast", "equalize", "contrast")
"""Those among them that depend on the picture's histogram."""

_GRAY = (0.299, 0.587, 0.114)
_STATISTICS_SIDE = 64  # Histograms are taken of about so many rows and columns; larger pictures are sampled.
_BLUR_RADIUS = 6


def size_of(pictures: tf.Tensor) -> tuple[int, int]:
    """Returns the height and width of pictures, `(B, H, W, C)`, which must be known."""
    height, width = (int(side or 0) for side in pictures.shape[1:3])
    return height, width


# Geometry


def affine_maps(
    angle: tf.Tensor, shear_x: tf.Tensor, shear_y: tf.Tensor, scale: tf.Tensor, x: tf.Tensor, y: tf.Tensor
) -> tf.Tensor:
    """Returns maps from output to input positions about a picture's centre: shear, then rotate and scale, then shift.

    Args:
        angle: Radians, `(B,)`.
        shear_x: Columns to the right per row downwards, `(B,)`.
        shear_y: Rows downwards per column to the right, `(B,)`.
        scale: Input pixels per output pixel, `(B,)`.
        x: Shift in pixels, `(B,)`.
        y: Shift in pixels, `(B,)`.

    Returns:
        Matrices, `(B, 3, 3)`: further maps are multiplied to the right.
    """
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    zero, one = tf.zeros_like(angle), tf.ones_like(angle)
    rows = (
        (cos - sin * shear_y, cos * shear_x - sin, x),
        (sin + cos * shear_y, sin * shear_x + cos, y),
        (zero, zero, one),
    )
    return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=-2)  # (B, 3, 3)


@compiled
def warp(picture: tf.Tensor, matrix: tf.Tensor, fill: int) -> tf.Tensor:
    """Resamples a picture bilinearly.

    Args:
        picture: uint8 `(H, W, 3)`.
        matrix: From output to input positions about the centre, `(3, 3)`.
        fill: What lies outside the picture, 0 to 255.

    Returns:
        uint8 `(H, W, 3)`.
    """
    height, width = size_of(picture[None])
    x = tf.range(width, dtype=tf.float32)[None, :] - (width - 1) / 2
    y = tf.range(height, dtype=tf.float32)[:, None] - (height - 1) / 2
    # One column and row of fill stand around; what comes from beyond them comes from them.
    source_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + (width + 1) / 2  # (H, W)
    source_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + (height + 1) / 2
    source_x = tf.clip_by_value(source_x, 0.0, width + 1.0)
    source_y = tf.clip_by_value(source_y, 0.0, height + 1.0)
    left, top = tf.cast(source_x, tf.int32), tf.cast(source_y, tf.int32)
    weight_x = (source_x - tf.cast(left, tf.float32))[:, :, None]
    weight_y = (source_y - tf.cast(top, tf.float32))[:, :, None]

    framed = tf.pad(picture, ((1, 2), (1, 2), (0, 0)), constant_values=tf.constant(fill, tf.uint8))
    flat, stride = tf.reshape(framed, (-1, 3)), width + 3
    start = top * stride + left
    corners = [tf.cast(tf.gather(flat, start + offset), tf.float32) for offset in (0, 1, stride, stride + 1)]
    above = corners[0] + (corners[1] - corners[0]) * weight_x
    below = corners[2] + (corners[3] - corners[2]) * weight_x
    return tf.cast(above + (below - above) * weight_y + 0.5, tf.uint8)  # (H, W, 3)


# Filters


def sharpen(picture: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Moves a picture away from its smoothed self, or with a negative `amount` towards it, as Pillow's `Sharpness`.

    Args:
        picture: uint8 `(H, W, 3)`; the outermost pixels stay.
        amount: Pillow's factor minus 1, `()`.
    """
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
    x = tf.cast(picture, tf.float32)
    smooth = tf.nn.depthwise_conv2d(x[None], tf.tile(kernel[:, :, None, None], (1, 1, 3, 1)), (1, 1, 1, 1), "VALID")[0]
    inner = tf.pad(x[1:-1, 1:-1] - smooth, ((1, 1), (1, 1), (0, 0)))
    return _pixels(x + amount * inner)


def blur(picture: tf.Tensor, deviation: tf.Tensor) -> tf.Tensor:
    """Blurs a picture, uint8 `(H, W, 3)`, with a Gaussian of a deviation in pixels, up to 2; edges are mirrored."""
    taps = tf.range(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=tf.float32)
    kernel = tf.nn.softmax(-(taps**2) / (2 * deviation**2))
    x = tf.cast(picture, tf.float32)[None]
    for axis, side in enumerate(size_of(x), start=1):
        radius = min(_BLUR_RADIUS, side - 1)
        own = kernel[_BLUR_RADIUS - radius : _BLUR_RADIUS + radius + 1]
        padding = [[0, 0]] * 4
        padding[axis] = [radius, radius]
        shape = (-1, 1, 1, 1) if axis == 1 else (1, -1, 1, 1)
        own = tf.tile(tf.reshape(own / tf.reduce_sum(own), shape), (1, 1, 3, 1))
        x = tf.nn.depthwise_conv2d(tf.pad(x, padding, "REFLECT"), own, (1, 1, 1, 1), "VALID")
    return _pixels(x[0])


# Tables


@compiled
def histograms(pictures: tf.Tensor) -> tf.Tensor:
    """Counts the values of every channel: uint8 `(B, H, W, 3)` to float32 `(B, 3, 256)`."""
    height, width = size_of(pictures)
    sample = pictures[:, :: max(1, height // _STATISTICS_SIDE), :: max(1, width // _STATISTICS_SIDE)]
    channels = tf.range(3 * tf.shape(pictures)[0])
    index = tf.cast(sample, tf.int32) + 256 * tf.reshape(channels, (-1, 1, 1, 3))
    index = tf.reshape(index, (-1,))
    counts = tf.math.unsorted_segment_sum(tf.ones_like(index, tf.float32), index, 256 * tf.size(channels))
    return tf.reshape(counts, (-1, 3, 256))


@compiled
def compose_tables(ops: tf.Tensor, strengths: tf.Tensor, counts: tf.Tensor | None = None) -> tf.Tensor:
    """Composes operations into one table a channel.

    Args:
        ops: Operations in order, int32 `(B, S)`: indices into `TABLE_OPS`, others do nothing.
        strengths: `(B, S)`: of contrast and brightness the factor, 1 for none; of the others 0 to 1.
        counts: Histograms of the pictures, `(B, 3, 256)`; without them `STATISTICAL_OPS` do nothing, and the rest
            costs a fifth.

    Returns:
        New values of the values 0 to 255, int32 `(B, 3, 256)`.
    """
    table = tf.range(256) + tf.zeros((tf.shape(ops)[0], 3, 1), tf.int32)
    offsets = 256 * tf.reshape(tf.range(3 * tf.shape(ops)[0]), (-1, 3, 1))
    num_ops = int(ops.shape[1] or 0)
    for s in range(num_ops):
        step = _table(ops[:, s], strengths[:, s], counts)
        table = tf.gather(tf.reshape(step, (-1,)), table + offsets)
        if counts is not None and s + 1 < num_ops:  # What the next operation sees.
            index = tf.reshape(step + offsets, (-1,))
            moved = tf.math.unsorted_segment_sum(tf.reshape(counts, (-1,)), index, tf.size(counts))
            counts = tf.reshape(moved, tf.shape(counts))
    return table


def _table(op: tf.Tensor, strength: tf.Tensor, counts: tf.Tensor | None) -> tf.Tensor:
    """Returns the table of one operation per picture, int32 `(B, 3, 256)`, as Pillow has them."""
    values = tf.range(256, dtype=tf.float32)[None, None]
    strength = strength[:, None, None]
    bits = 4 - tf.floor(strength * 4)
    kept = 2 ** (8 - tf.maximum(bits, 1))
    tables = {
        "invert": 255 - values,
        "posterize": values // kept * kept,
        "solarize": tf.where(values < 256 - tf.floor(strength * 256), values, 255 - values),
        "solarize_add": tf.where(values < 128, values + tf.minimum(128.0, tf.floor(strength * 110)), values),
        "brightness": values * strength,
    }
    if counts is not None:
        total = tf.reduce_sum(counts, axis=2, keepdims=True)
        mean = tf.reduce_sum(counts * values, axis=2, keepdims=True) / total  # (B, 3, 1)
        gray = tf.floor(tf.reduce_sum(mean * tf.reshape(tf.constant(_GRAY), (1, 3, 1)), axis=1, keepdims=True) + 0.5)
        tables["auto_contrast"] = _auto_contrast(counts, values)
        tables["equalize"] = _equalize(counts, total, values)
        tables["contrast"] = gray + (values - gray) * strength
    found = tf.zeros((tf.shape(op)[0], 3, 1)) + values
    for name, table in tables.items():
        found = tf.where((op == TABLE_OPS.index(name))[:, None, None], table, found)
    return tf.cast(tf.clip_by_value(found, 0.0, 255.0), tf.int32)


def _auto_contrast(counts: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Stretches each channel from 0 to 255."""
    low = tf.reduce_min(tf.where(counts > 0, values, 255.0), axis=2, keepdims=True)
    high = tf.reduce_max(tf.where(counts > 0, values, 0.0), axis=2, keepdims=True)
    return tf.where(high > low, (values - low) * 255 / tf.maximum(high - low, 1.0), values)


def _equalize(counts: tf.Tensor, total: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Gives each channel a flat histogram, by Pillow's rule."""
    last = tf.reduce_max(tf.where(counts > 0, values, 0.0), axis=2, keepdims=True)
    of_last = tf.reduce_sum(tf.where(values == last, counts, 0.0), axis=2, keepdims=True)
    step = (total - of_last) // 255
    before = tf.cumsum(counts, axis=2, exclusive=True)
    return tf.where(step > 0, (step // 2 + before) // tf.maximum(step, 1.0), values)


@compiled
def look_up(pictures: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Replaces the values of pictures: uint8 `(B, H, W, 3)`, by tables `(B, 3, 256)`."""
    offsets = 256 * tf.reshape(tf.range(3 * tf.shape(pictures)[0]), (-1, 1, 1, 3))
    return tf.gather(tf.reshape(tf.cast(tables, tf.uint8), (-1,)), tf.cast(pictures, tf.int32) + offsets)


# Whole batches


@compiled
def saturate(pictures: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Moves colours away from gray: uint8 `(B, H, W, 3)`, factors `(B,)`; 0 gives gray, 1 changes nothing."""
    x = tf.cast(pictures, tf.float32)
    red, green, blue = (part * share for part, share in zip(tf.split(x, 3, axis=3), _GRAY, strict=True))
    gray = tf.floor(red + green + blue + 0.5)
    return tf.cast(tf.clip_by_value(gray + (x - gray) * factors[:, None, None, None], 0.0, 255.0), tf.uint8)


@compiled
def erase(pictures: tf.Tensor, boxes: tf.Tensor, colours: tf.Tensor) -> tf.Tensor:
    """Paints over boxes of top, bottom, left and right, int32 `(B, 4)`, of pictures, `(B, H, W, 3)`.

    Args:
        pictures: uint8 or float32.
        boxes: May be empty.
        colours: 0 to 255, `(B, 3)`.
    """
    return tf.where(_inside(boxes, size_of(pictures)), tf.cast(colours[:, None, None], pictures.dtype), pictures)


@compiled
def mix(pictures: tf.Tensor, share: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Mixes every picture of a batch with its counterpart from the batch's other end.

    Args:
        pictures: uint8 or float32, `(B, H, W, 3)`.
        share: Weight of a picture itself outside the box, a multiple of 1/256, `()`; inside it has none.
        box: Top, bottom, left and right, int32 `(4,)`.
    """
    inside = _inside(box[None], size_of(pictures))  # (1, H, W, 1)
    exact = tf.float32 if pictures.dtype == tf.float32 else tf.uint16  # Of bytes the products fit into 16 bits.
    weight = tf.where(inside, tf.zeros((), exact), tf.cast(256 * share, exact))
    own, other = (tf.cast(x, exact) for x in (pictures, tf.reverse(pictures, (0,))))
    mixed = own * weight + other * (256 - weight)
    return mixed / 256 if exact == tf.float32 else tf.cast((mixed + 128) // 256, tf.uint8)


def _inside(boxes: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Returns which pixels lie in boxes, `(B, 4)`: bool `(B, H, W, 1)`."""
    y = tf.range(image_size[0])[None, :, None]
    x = tf.range(image_size[1])[None, None, :]
    top, bottom, left, right = (boxes[:, i, None, None] for i in range(4))
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right))[..., None]


def _pixels(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(x, 0.0, 255.0) + 0.5, tf.uint8)
