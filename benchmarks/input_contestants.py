"""Input pipelines from JPEG files to batches: what `input_pipeline.py` measures.

Each is built as its own documentation makes it fast:

- `floor`: tf.data that reads and decodes whole pictures in one thread more than there are cores (tf.data's own choice
  was slower), in any order, and keeps one pixel of each.
- `ours`: `vit_keras.pipelines.preprocessing.training_batches`. The model normalises.
- `keras`: `image_dataset_from_directory`, then Keras's layers in parallel maps. Keras has no random resized crop:
  `RandomCrop` cuts 224 from 256, picture by picture, as it cuts a batch in one place. `RandAugment` too draws its
  operations once for a batch, so it takes pictures; with 11 operations. `MixUp` and `CutMix` take batches. Pixels 0
  to 255: the model normalises.
- `keras_directory`: `image_dataset_from_directory` with 224x224 pictures and `RandomFlip`; no crop, `crop_flip` only.
- `pil_workers`: Pillow in the workers of PyTorch's DataLoader with torchvision's transforms of Pillow's pictures, but
  for cropping and resizing, which Pillow does in one call (torchvision: two). As in timm, workers hand over uint8,
  mixed in NumPy, and the trainer's process normalises whole batches.
- `torchvision`: the same with torchvision's decoder, and its transforms (v2) of uint8 tensors.
- `albumentations`: OpenCV with one thread in each of DataLoader's workers, `albumentations.Normalize` included.
  RandAugment is `SomeOf` two of 14 operations like torchvision's. Batches are mixed in NumPy.
- `grain`: the same function from a file to a picture in `grain`'s worker processes, one reading thread in each.

All workers are as many as there are cores. Batches of PyTorch and grain stay channels-last where pictures were decoded
so, which saves them a copy.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vit_keras.pipelines.config import AugmentConfig

TASKS = ("crop_flip", "rand_augment")
BATCH = 64
SIDE = 224
CLASSES = 1000
MIXUP_ALPHA, CUTMIX_ALPHA = 0.8, 1.0
NUM_OPS, MAGNITUDE, MAGNITUDES = 2, 9, 31
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CORES = len(os.sched_getaffinity(0))

Batches = Iterator[tuple[Any, Any]]
"""Pictures and labels, without end."""


def our_config(task: str) -> "AugmentConfig":
    """Returns our settings for a task: the policy of its name, and of the second no random erasing."""
    from vit_keras.pipelines.config import AugmentConfig

    return AugmentConfig("crop_flip") if task == "crop_flip" else AugmentConfig("rand_augment", erasing=0.0)


def names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.iterdir())


def labels(files: Iterable[str]) -> list[int]:
    return [number % CLASSES for number, _ in enumerate(files)]


# Contestants on tf.data.


def floor(_task: str, folder: Path) -> Batches:
    import tensorflow as tf

    def read(file: Any) -> Any:
        return tf.io.decode_jpeg(tf.io.read_file(file), channels=3)[0, 0]

    files = names(folder)
    dataset = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    dataset = dataset.map(read, CORES + 1, deterministic=False).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return ((pixels, None) for pixels in dataset)


def ours(task: str, folder: Path) -> Batches:
    from vit_keras.pipelines.datasets import Split
    from vit_keras.pipelines.preprocessing import training_batches

    files = tuple(names(folder)) * 10  # Epochs are not endless: an incomplete batch is left out of each.
    split = Split(files, np.array(labels(files), "int32"))
    return iter(training_batches(split, (SIDE, SIDE), BATCH, our_config(task), seed=0, num_classes=CLASSES))


def keras_directory(_task: str, folder: Path) -> Batches:
    import keras
    import tensorflow as tf

    flip = keras.layers.RandomFlip("horizontal")
    dataset = _keras_pictures(folder, SIDE, BATCH).map(lambda x, y: (flip(x), y), tf.data.AUTOTUNE)
    return iter(dataset.repeat().prefetch(tf.data.AUTOTUNE))


def keras(task: str, folder: Path) -> Batches:
    import tensorflow as tf
    from keras import layers

    crop, flip = layers.RandomCrop(SIDE, SIDE), layers.RandomFlip("horizontal")
    rand_augment = layers.RandAugment(num_ops=NUM_OPS, factor=MAGNITUDE / (MAGNITUDES - 1))
    mixup, cutmix = layers.MixUp(MIXUP_ALPHA), layers.CutMix(CUTMIX_ALPHA)

    def change(image: Any, label: Any) -> tuple[Any, Any]:
        image = flip(crop(image))
        return (image if task == "crop_flip" else rand_augment(image)), label

    def mix(images: Any, labels: Any) -> tuple[Any, Any]:
        batch = {"images": images, "labels": tf.one_hot(labels, CLASSES)}
        mixed = tf.cond(tf.random.uniform(()) < 0.5, lambda: mixup(batch), lambda: cutmix(batch))
        return mixed["images"], mixed["labels"]

    dataset = _keras_pictures(folder, 256, None).repeat().map(change, tf.data.AUTOTUNE)
    dataset = dataset.batch(BATCH, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE)
    if task == "rand_augment":
        dataset = dataset.map(mix, tf.data.AUTOTUNE)
    return iter(dataset.prefetch(tf.data.AUTOTUNE))


def _keras_pictures(folder: Path, side: int, batch_size: int | None) -> Any:
    from keras.utils import image_dataset_from_directory

    options = {"image_size": (side, side), "batch_size": batch_size, "verbose": False}
    return image_dataset_from_directory(folder, labels=labels(names(folder)), **options)


# Contestants in Python processes: how a file becomes a picture, and how pictures become batches.


def pil_workers(task: str, folder: Path) -> Batches:
    from PIL import Image
    from torchvision.transforms import RandomResizedCrop, v2

    changes = [v2.RandomHorizontalFlip()]
    if task == "rand_augment":
        changes.append(v2.RandAugment(NUM_OPS, MAGNITUDE, MAGNITUDES))
    change = v2.Compose(changes)

    def read(file: str) -> np.ndarray:
        with Image.open(file) as picture:
            top, left, height, width = RandomResizedCrop.get_params(picture, [0.08, 1], [3 / 4, 4 / 3])
            picture = picture if picture.mode == "RGB" else picture.convert("RGB")
            box = (left, top, left + width, top + height)
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
        return np.asarray(change(picture))  # (H, W, 3)

    return _normalised(_torch_batches(read, task, folder), (3,))


def torchvision(task: str, folder: Path) -> Batches:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    changes = [v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip()]
    if task == "rand_augment":
        changes.append(v2.RandAugment(NUM_OPS, MAGNITUDE, MAGNITUDES))
    change = v2.Compose(changes)
    batches = _torch_batches(lambda file: change(decode_jpeg(read_file(file), ImageReadMode.RGB)), task, folder)
    return _normalised(batches, (3, 1, 1))


def albumentations(task: str, folder: Path) -> Batches:
    return _torch_batches(_albumentations_reader(task), task, folder)


def grain(task: str, folder: Path) -> Batches:
    import cv2
    import grain

    read = _albumentations_reader(task)

    def batch(pairs: Any) -> tuple[np.ndarray, np.ndarray]:
        images, classes = (np.stack(values) for values in zip(*pairs, strict=True))
        return images, (mixed(images, classes) if task == "rand_augment" else classes)

    files = names(folder)
    pairs = list(zip(files, labels(files), strict=True))
    dataset = grain.MapDataset.source(pairs).shuffle(seed=0).repeat().map(lambda pair: (read(pair[0]), pair[1]))
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCH))
    dataset = dataset.batch(BATCH, drop_remainder=True, batch_fn=batch)
    options = grain.MultiprocessingOptions(num_workers=CORES, per_worker_buffer_size=2)
    return iter(dataset.mp_prefetch(options, worker_init_fn=lambda *_: cv2.setNumThreads(0)))


def _albumentations_reader(task: str) -> Callable[[str], np.ndarray]:
    """Returns a function from a file to normalised pixels, float32 `(H, W, 3)`."""
    import albumentations as A  # noqa: N812
    import cv2

    changes = [A.RandomResizedCrop((SIDE, SIDE), (0.08, 1), (3 / 4, 4 / 3)), A.HorizontalFlip()]
    if task == "rand_augment":
        changes.append(A.SomeOf(_albumentations_operations(), n=NUM_OPS, replace=True))
    change = A.Compose([*changes, A.Normalize(MEAN, STD)])
    cv2.setNumThreads(0)
    return lambda file: change(image=cv2.imread(file, cv2.IMREAD_COLOR_RGB))["image"]


def _albumentations_operations() -> list[Any]:
    """Returns torchvision's 14 operations of RandAugment at `MAGNITUDE`, nearest neighbours in the geometric ones."""
    import albumentations as A  # noqa: N812
    import cv2

    share = MAGNITUDE / (MAGNITUDES - 1)
    shear, shift, factor = math.degrees(math.atan(0.3 * share)), 150 / 331 * share, 0.9 * share
    affine = {"interpolation": cv2.INTER_NEAREST, "p": 1}
    jitter = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0), "p": 1}
    return [
        A.NoOp(p=1),
        A.Affine(shear={"x": (-shear, shear), "y": 0}, **affine),
        A.Affine(shear={"x": 0, "y": (-shear, shear)}, **affine),
        A.Affine(translate_percent={"x": (-shift, shift), "y": 0}, **affine),
        A.Affine(translate_percent={"x": 0, "y": (-shift, shift)}, **affine),
        A.Affine(rotate=(-30 * share, 30 * share), **affine),
        *(A.ColorJitter(**{**jitter, k: (1 - factor, 1 + factor)}) for k in ("brightness", "contrast", "saturation")),
        A.Sharpen(alpha=(0, factor), kernel_size=3, p=1),
        A.Posterize(8 - round(4 * share), p=1),
        A.Solarize((1 - share, 1 - share), p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
    ]


class TorchPictures:
    """What DataLoader takes: pictures by number, with their labels."""

    def __init__(self, read: Callable[[str], Any], folder: Path) -> None:
        self._read, self._files = read, names(folder)
        self._labels = labels(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._read(self._files[index]), self._labels[index]


def _torch_batches(read: Callable[[str], Any], task: str, folder: Path) -> Batches:
    from torch import from_numpy
    from torch.utils.data import DataLoader, default_collate

    def collate(pairs: list) -> tuple[Any, Any]:
        images, classes = default_collate(pairs)  # In memory that the trainer's process shares.
        if task == "crop_flip":
            return images, classes
        pixels = images.numpy()
        last = pixels.shape[3] == 3
        return images, from_numpy(mixed(pixels if last else pixels.transpose(0, 2, 3, 1), classes.numpy()))

    options = {"num_workers": CORES, "persistent_workers": True, "collate_fn": collate}
    loader: Any = DataLoader(TorchPictures(read, folder), BATCH, shuffle=True, drop_last=True, **options)
    while True:
        yield from loader


def _normalised(batches: Batches, shape: tuple[int, ...]) -> Batches:
    """Normalises uint8 batches; `shape` lays the channels along their axis."""
    import torch

    mean, std = (255 * torch.tensor(values).reshape(shape) for values in (MEAN, STD))
    for images, classes in batches:
        yield images.float().sub_(mean).div_(std), classes


def mixed(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Applies MixUp or CutMix in place, each picture with its opposite in the batch, as in timm.

    Args:
        images: uint8 or float32 `(B, H, W, 3)`.
        classes: Their classes, `(B,)`.

    Returns:
        The labels to it, float32 `(B, CLASSES)`.
    """
    random = np.random.default_rng()
    height, width = images.shape[1:3]
    if random.random() < 0.5:
        share = np.float32(random.beta(MIXUP_ALPHA, MIXUP_ALPHA))
        others = images[::-1] * (1 - share)
        images[:] = images * share + others
    else:
        side = math.sqrt(1 - random.beta(CUTMIX_ALPHA, CUTMIX_ALPHA))
        y, x = random.integers(height), random.integers(width)
        top, bottom = max(0, round(y - side * height / 2)), min(height, round(y + side * height / 2))
        left, right = max(0, round(x - side * width / 2)), min(width, round(x + side * width / 2))
        images[:, top:bottom, left:right] = images[::-1, top:bottom, left:right].copy()
        share = np.float32(1 - (bottom - top) * (right - left) / (height * width))
    one_hot = np.zeros((len(classes), CLASSES), "float32")
    one_hot[np.arange(len(classes)), classes] = 1
    return share * one_hot + (1 - share) * one_hot[::-1]


@dataclass(frozen=True)
class Contestant:
    """An input pipeline.

    Attributes:
        batches: Function from a task and the folder of files to batches.
        libraries: Distributions whose versions matter.
        peer: Whether it runs in the peers' environment.
        tasks: What it can do.
    """

    batches: Callable[[str, Path], Batches]
    libraries: tuple[str, ...]
    peer: bool = False
    tasks: tuple[str, ...] = TASKS


CONTESTANTS = {
    "floor": Contestant(floor, ("tensorflow",)),
    "ours": Contestant(ours, ("tensorflow", "keras")),
    "keras": Contestant(keras, ("tensorflow", "keras")),
    "keras_directory": Contestant(keras_directory, ("tensorflow", "keras"), tasks=("crop_flip",)),
    "pil_workers": Contestant(pil_workers, ("pillow", "torchvision", "torch"), peer=True),
    "torchvision": Contestant(torchvision, ("torchvision", "torch"), peer=True),
    "albumentations": Contestant(albumentations, ("albumentations", "opencv-python-headless", "torch"), peer=True),
    "grain": Contestant(grain, ("grain", "albumentations", "opencv-python-headless"), peer=True),
}
