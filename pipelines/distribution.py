"""Several devices of one host, and several hosts; docs/distributed.md says what works. TensorFlow only when asked."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import keras
import numpy as np

ADDRESS = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
COUNT = "KERAS_DISTRIBUTION_NUM_PROCESSES"
INDEX = "KERAS_DISTRIBUTION_PROCESS_ID"


@dataclass(frozen=True)
class Process:
    """One of the processes that train a model together, and its part of the data.

    Attributes:
        index: Which one this is, from 0. The first writes the files.
        count: How many there are.
        local_devices: Devices of each process.
    """

    index: int = 0
    count: int = 1
    local_devices: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"index must be in [0, count). Received: index={self.index}, count={self.count}")

    @property
    def devices(self) -> int:
        """Devices of all processes together."""
        return self.count * self.local_devices

    def wait(self, where: str) -> None:
        """Waits until all processes have come here; a process alone goes on at once.

        Args:
            where: A name for this place, the same in all processes.
        """
        if self.count > 1:
            from jax.experimental.multihost_utils import sync_global_devices

            sync_global_devices(where)

    def first(self, act: Callable[[], object]) -> None:
        """Lets the first process do something alone, such as writing what all of them read.

        It begins when all processes have come here, and they go on when it is done. All must call this.

        Args:
            act: What to do.

        Raises:
            RuntimeError: in the other processes, if it failed in the first one; there it raises what `act` raised.
        """
        if self.count == 1:
            act()
            return
        from jax.experimental.multihost_utils import broadcast_one_to_all

        self.wait("the first process acts")
        error = None
        if self.index == 0:
            try:
                act()
            except Exception as raised:
                error = raised
        failed = broadcast_one_to_all(np.int32(error is not None))
        if error:
            raise error
        if failed:
            raise RuntimeError("The first process has failed; what it printed says why.")

    def share(self, batch_size: int) -> int:
        """Returns how many examples of a global batch this process brings.

        Args:
            batch_size: Examples in a global batch; must be a multiple of the number of all devices.

        Raises:
            ValueError: a `batch_size` that the devices do not divide.
        """
        if batch_size % self.devices:
            raise ValueError(
                f"batch_size must be a multiple of {self.devices} devices. Received: batch_size={batch_size}"
            )
        return batch_size // self.count

    def training_rows(self, examples: int, batch_size: int) -> np.ndarray:
        """Returns where in an epoch's order this process finds its examples.

        All processes draw the same order; from every global batch each takes its own rows, side by side. So a batch is
        what one process alone would have seen, example by example, and dropout falls on the same ones.

        Args:
            examples: Number of examples in the epoch; what does not fill a global batch is left out.
            batch_size: Examples in a global batch; must be a multiple of the number of all devices.

        Returns:
            Positions, int64 `(n,)`, to be batched by `share(batch_size)`.

        Raises:
            ValueError: a `batch_size` that the devices do not divide.
        """
        return self._mine(np.arange(examples - examples % batch_size), batch_size)

    def evaluation_rows(self, examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns where this process finds its examples for evaluation, and what each weighs.

        Every process must bring as many whole batches as the others: the last global batch is filled up with examples
        of weight 0. The other weights are such that a mean over all is the mean over the true ones: exact for losses,
        and for metrics given to `compile` as `weighted_metrics`.

        Args:
            examples: Number of examples, >= 1.
            batch_size: Examples in a global batch; must be a multiple of the number of all devices.

        Returns:
            Positions, int64 `(n,)`, to be batched by `share(batch_size)`, and weights, float32 `(n,)`.

        Raises:
            ValueError: a `batch_size` that the devices do not divide.
        """
        rows = np.arange(-(-examples // batch_size) * batch_size)
        weights = np.where(rows < examples, len(rows) / examples, 0).astype("float32")
        return self._mine(np.minimum(rows, examples - 1), batch_size), self._mine(weights, batch_size)

    def _mine(self, values: np.ndarray, batch_size: int) -> np.ndarray:
        return values.reshape(-1, self.count, self.share(batch_size))[:, self.index].reshape(-1)


def initialize(address: str | None = None, count: int | None = None, index: int | None = None) -> Process:
    """Joins this process with the others of a training. Call it before anything else, after setting the same seed.

    Args:
        address: Host and port of the first process, such as `10.0.0.1:1234`; the environment's
            `KERAS_DISTRIBUTION_JOB_ADDRESSES` if `None`.
        count: Number of processes; `KERAS_DISTRIBUTION_NUM_PROCESSES` if `None`.
        index: Which one this is, from 0; `KERAS_DISTRIBUTION_PROCESS_ID` if `None`.

    Returns:
        This process; the only one if neither the arguments nor the environment say otherwise.

    Raises:
        ValueError: only a part is known, an index out of range, or another backend than JAX.
        RuntimeError: JAX has computed something already.
    """
    address = address or os.environ.get(ADDRESS)
    count = _from_environment(COUNT) if count is None else count
    index = _from_environment(INDEX) if index is None else index
    if address is None and count is None and index is None:
        return Process(local_devices=_local_devices())
    if address is None or count is None or index is None:
        raise ValueError(
            f"address, count and index must be given together, or {ADDRESS}, {COUNT} and {INDEX} be set. "
            f"Received: address={address!r}, count={count}, index={index}"
        )
    Process(index, count)  # Before anybody waits for anybody.
    if count > 1:
        if keras.backend.backend() != "jax":
            raise ValueError(
                "Several processes train together on the JAX backend only: set KERAS_BACKEND=jax. "
                f"Received: backend={keras.backend.backend()!r}, count={count}"
            )
        keras.distribution.initialize(address, count, index)
    return Process(index, count, _local_devices())


def scope(devices: list[str] | None = None) -> AbstractContextManager:
    """Gives the context to make, compile and fit a model in, so that all devices train it.

    Args:
        devices: TensorFlow's names of the devices, such as `["GPU:0", "GPU:1"]`; all GPUs of the host if `None`. On
            JAX always all devices of all processes.

    Returns:
        On TensorFlow the scope of a `MirroredStrategy`, on JAX that of a `keras.distribution.DataParallel` that
        expects every process to bring its own part of the data; a context that does nothing if there is one device.
    """
    if keras.backend.backend() == "jax":
        if len(keras.distribution.list_devices()) < 2:
            return nullcontext()
        return keras.distribution.DataParallel(auto_shard_dataset=False).scope()
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    devices = devices or [device.name for device in tf.config.list_logical_devices("GPU")]
    return tf.distribute.MirroredStrategy(devices).scope() if len(devices) > 1 else nullcontext()


def replicas() -> int:
    """Returns how many devices train copies of a model in the present TensorFlow scope; 1 on other backends."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


@contextmanager
def local() -> Iterator[None]:
    """Gives a context for what one process does without the others: saving, or predicting with a model loaded there.

    Inside a Keras distribution whoever makes or assigns a variable waits until all processes do the same, and saving
    makes some: a process that saves alone would wait for ever.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def clip_whole_gradients(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an optimiser clip the gradients of the whole batch under a `MirroredStrategy`.

    Keras 3.15 clips on each device its own part, `1 / n` of the gradients, before adding the parts up: the norm that is
    held to the limit is another one, and the training differs from that on one device. Elsewhere, as on JAX, the
    gradients that Keras clips are the whole ones, and nothing changes.

    Args:
        optimizer: The optimiser, changed in place, before `compile`.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    clip = optimizer._clip_gradients

    def clip_the_sum(gradients: list) -> list:
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync if context else 1
        if replicas == 1:
            return clip(gradients)
        whole = clip(context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients)))
        return [gradient / replicas for gradient in whole]  # Keras adds them up again.

    optimizer._clip_gradients = clip_the_sum


def _from_environment(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise ValueError(f"{name} must be a whole number. Received: {name}={value!r}")
    return int(value)


def _local_devices() -> int:
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return jax.local_device_count()
