"""Exact rewrites before conversion: the same function in fewer and cheaper operators.

Every rewrite is equal in exact arithmetic and can be left out. Models of other layers than ours pass through as they
are; what is nested in them is laid flat.
"""

import logging
from collections.abc import Iterable, Mapping

import keras
import numpy as np
from keras import ops

from vit_keras.graph import Copies, as_functional, given
from vit_keras.layers import (
    AttentionPooling,
    LayerNormalization,
    LayerScale,
    LearnedPositionEmbedding,
    PatchEmbedding,
    PrefixTokens,
    PromptTokens,
    TokenRemoval,
    TokenSlice,
    TransformerBlock,
)
from vit_keras.layers.dense import take_weights
from vit_keras.messages import nearest
from vit_keras.precision import precision
from vit_keras.weights import resize

from .attention_rows import AttentionRows, patch_grid
from .folding import Product, after_affine, centred, product_of, scaled, weights_of, without_biases
from .inference_layers import (
    InferenceAttention,
    InferenceMLP,
    InferenceNormalization,
    InferencePatches,
    InferenceReadout,
)
from .inference_pooling import InferencePooling, folded
from .merging import TokenMerging, TokenUnmerging, merged_after
from .quantize import check_merging
from .smoothing import smoothing_factors
from .structure import Stream, as_flat, check_chain, flatten, inline, is_for_training

logger = logging.getLogger(__name__)

REWRITES: dict[str, str] = {
    "layer_norm": "Keras's own LayerNorms are computed as ours are, for which TensorFlow Lite has integer kernels",
    "normalisation": "mean and standard deviation of the pictures move into the patch projection",
    "patches": "the pixels of a patch's row become channels of one pixel: kernels for integers fill three channels up",
    "layer_scale": "LayerScale's factors move into the products before them",
    "query_scale": "the attention's factor moves into the product of the queries",
    "affine": "gamma and beta of LayerNorms move into the products after them",
    "centring": "all that adds to the residual stream is made mean-free, so that LayerNorms need no mean",
    "biases": "the keys' bias, which the softmax cancels, is left out; the values' moves into the attention's output",
    "prefix": "the first LayerNorm leaves out class and register tokens, of which its results are constants",
    "prompts": "prompts that every block has of its own become constant keys and values of its attention",
    "smoothing": "where a channel stands out, LayerNorm's results and the product after them share its size",
    "pooling": "attention pooling's constant query moves into the keys' product; values are left for what is pooled",
    "last_block": "the last block computes only the tokens that are pooled, and no keys and values of the others",
}
"""The rewrites, in the order in which they are applied, and what each does."""


def check_rewrites(names: Iterable[str]) -> tuple[str, ...]:
    """Returns `names` in the table's order, each once.

    Raises:
        ValueError: a name that is not in `REWRITES`, with the nearest one.
    """
    names = list(names)
    for name in names:
        if name not in REWRITES:
            raise ValueError(f"Unknown rewrite {name!r}.{nearest(name, REWRITES)} Known: {', '.join(REWRITES)}")
    return tuple(name for name in REWRITES if name in names)


@precision("float32")
def rewrite(
    model: keras.Model,
    rewrites: Iterable[str] = tuple(REWRITES),
    pictures: np.ndarray | None = None,
    smoothing: Mapping[str, np.ndarray] | None = None,
    with_attention: bool = False,
    merge_tokens: float = 0.0,
) -> keras.Model:
    """Builds a float32 model for prediction that computes the same from fewer operators.

    Args:
        model: A model of any layers, with one input. It is left as it is. Models of classes of their own are not looked
            into.
        rewrites: Names in `REWRITES`. Those that the model gives no occasion for do nothing.
        pictures: Sample pictures, `(n, H, W, 3)`, that `"smoothing"` measures activations on; without them it looks at
            the weights alone.
        smoothing: What `smoothed_channels` gave for the same model at another picture size, so that both come out with
            the same kernels; looked for in this model if `None`.
        with_attention: Whether the model gives its attention as a second output; see `vit_keras.export.attention`.
        merge_tokens: Share of the patches that are merged into others, 0 to 0.5; see `vit_keras.export.merging`. This
            alone changes what the model computes.

    Returns:
        A flat functional model of its own weights, float32 whatever the policy of `model`, without layers that do
        nothing outside training.

    Raises:
        ValueError: an unknown rewrite, `with_attention` or `merge_tokens` for a model that is no chain of our
            transformer blocks, or both of them.
    """
    names = set(check_rewrites(rewrites))
    flat = as_flat(as_functional(model), "layer_norm" in names)
    stream = Stream.of(flat)
    if with_attention:
        check_chain(model, "with_attention")
    if merge_tokens:
        check_merging(merge_tokens, (), with_attention)
        check_chain(model, "merge_tokens", at_least=2)
    if stream is None:
        if names:
            logger.warning(
                "%s is no chain of vit_keras's blocks between a patch embedding and a LayerNorm: its layers are left "
                "as they are, each with all its operators.",
                model.name,
            )
        return _with_lean_pooling(flat) if "pooling" in names else flat
    options = {"with_attention": with_attention, "merge_tokens": merge_tokens}
    lean = _Emitter(flat, stream, names, smoothing, **options).model()
    if smoothing is None and {"smoothing", "affine"} <= names and (factors := smoothing_factors(lean, pictures)):
        lean = _Emitter(flat, stream, names, factors, **options).model()
    return lean


@precision("float32")
def at_size(model: keras.Model, image_size: tuple[int, int]) -> keras.Model:
    """Builds a flat float32 model of the same weights for pictures of another size; see `vit_keras.weights.resize`."""
    return resize(flatten(model, own_norms=False), image_size)


def _with_lean_pooling(flat: keras.Model) -> keras.Model:
    """Builds a flat model anew where it pools by attention; the other layers are its own."""
    if not any(type(layer) is AttentionPooling for layer in flat.layers):
        return flat
    copies = Copies(InferencePooling.of, lambda copy, layer: copy.set_weights(folded(layer)))

    def call(layer, *args, **kwargs):
        return copies(layer, *args, **kwargs) if type(layer) is AttentionPooling else layer(*args, **kwargs)

    return keras.Model(flat.input, inline(flat, flat.input, call), name=flat.name)


class _Emitter:
    """Builds the rewritten model out of a flat one, layer after layer."""

    def __init__(
        self,
        flat: keras.Model,
        stream: Stream,
        names: set[str],
        smoothing: Mapping[str, np.ndarray] | None = None,
        with_attention: bool = False,
        merge_tokens: float = 0.0,
    ) -> None:
        self.flat = flat
        self.smoothing = smoothing or {}
        self.attention = AttentionRows() if with_attention else None
        self.stream = stream
        blocks = [b for b in map(flat.get_layer, stream.layers) if isinstance(b, TransformerBlock)]
        self.last_block = blocks[-1].name
        self.merged_block = blocks[merged_after(len(blocks)) - 1].name if merge_tokens else None
        self.merge_tokens = merge_tokens
        self.copies = Copies(self._made, self._filled, self._visited)  # Of what is not on the stream.
        self.counts: tuple = ()  # What attention is told of merged tokens: the logarithm of how many each stands for.
        self.places = None  # Where what stands for each token is, once some are merged.
        if "layer_scale" not in names and any(b.attention_scale is not None for b in blocks):
            names = names - {"centring"}  # A factor per channel behind a product brings a mean back.
        self.names = names
        norm = flat.get_layer(stream.norm)
        self.fold_last_affine = "affine" in names and bool(stream.readers)
        self.last_affine = weights_of(norm) if self.fold_last_affine else []
        self.prefix = np.zeros((1, 0, norm.gamma.shape[0]))  # Tokens that are still to be put before the patches.
        self.prefix_name = ""
        self.own_prompts = stream.own_prompts and "prompts" in names
        self.prompts = self.prefix  # Of the next block, if they are its own.
        self.unmerges = merge_tokens > 0 and (stream.num_read is None or stream.num_read > stream.num_prefix)
        last = flat.get_layer(stream.layers[-1])
        fits = not isinstance(last, TokenRemoval) or (stream.num_read or 0) <= last.start
        self.num_kept = stream.num_read if "last_block" in names and fits and not self.unmerges else None

    def model(self) -> keras.Model:
        inputs = keras.Input(batch_shape=self.flat.inputs[0].shape, dtype="float32", name="images")
        outputs = inline(self.flat, inputs, self._call)
        if self.attention:
            outputs = [outputs, self.attention.joined(self.flat)]
        return keras.Model(inputs, outputs, name=self.flat.name)

    def _call(self, layer, *args, **kwargs):
        x = given(args, kwargs)
        name = layer.name
        if is_for_training(layer):
            return x
        if name == self.stream.rescaling and "normalisation" in self.names:
            return x
        if name in self.stream.layers:
            if isinstance(layer, PatchEmbedding):
                return self._patches(layer, x)
            if isinstance(layer, TokenRemoval):
                return self._removed(layer, x)
            if self.attention and isinstance(layer, PromptTokens) and not self.own_prompts:
                self.attention.left_out = slice(layer.num_prefix, layer.num_prefix + layer.num_tokens)
            return self._block(layer, x) if isinstance(layer, TransformerBlock) else self._added(layer, x)
        if name == self.stream.norm:
            return self._norm(layer, x, self.fold_last_affine)
        return self.copies(layer, *args, **kwargs)

    def _made(self, layer, name: str):
        if "pooling" in self.names and type(layer) is AttentionPooling:
            return InferencePooling.of(layer, name)
        config = {**layer.get_config(), "name": name}
        if self._reads_affine(layer) and "use_bias" in config:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def _filled(self, copy, layer) -> None:
        affine = self.last_affine if self._reads_affine(layer) else ()
        if isinstance(copy, InferencePooling):
            copy.set_weights(folded(layer, affine))
            return
        if not affine or isinstance(layer, AttentionPooling):
            take_weights(copy, layer)
        if affine:
            layer, copy = (part.key_value if isinstance(part, AttentionPooling) else part for part in (layer, copy))
            copy.set_weights(after_affine(product_of(layer), *affine))

    def _reads_affine(self, layer) -> bool:
        """Whether a layer is a product behind the last LayerNorm, which takes its gamma and beta over."""
        return bool(self.last_affine) and layer.name in self.stream.readers

    def _visited(self, copy, *args, **kwargs):
        """What a layer gives; of one that pools by attention, it is kept how."""
        if not self.attention or not isinstance(copy, AttentionPooling):
            return copy(*args, **kwargs)
        y, weights = copy(*args, **{**kwargs, "return_attention_scores": True})  # (B, D), (B, H, 1, N)
        self.attention.pooled = ops.mean(weights, axis=1)  # (B, 1, N)
        return (y, weights) if kwargs.get("return_attention_scores") else y

    def _path(self, layer: keras.layers.Layer) -> str:
        """A name in the rewritten model that tells where a layer was: `block_3_attention_norm`."""
        parts = layer.path.split("/")  # It may begin with the scope that the model was built in.
        start = next(i for i, part in enumerate(parts) if part in (*self.stream.layers, self.stream.norm))
        return "_".join(parts[start:])

    def _emit(self, layer: keras.layers.Layer, x, weights: Iterable[np.ndarray] = (), others: tuple = ()):
        y = layer(x, *others)
        layer.set_weights(list(weights))
        return y

    def _centred(self, values: np.ndarray) -> np.ndarray:
        return centred(values) if "centring" in self.names else values

    def _centred_product(self, product: Product) -> Product:
        kernel, bias = product
        return self._centred(kernel), self._centred(bias)

    def _patches(self, layer: PatchEmbedding, x):
        kernel, bias = weights_of(layer)  # (P, P, 3, D), (D,)
        if self.stream.rescaling and "normalisation" in self.names:
            rescaling = self.flat.get_layer(self.stream.rescaling)
            scale, offset = (np.broadcast_to(np.ravel(v), kernel.shape[2]) for v in (rescaling.scale, rescaling.offset))
            bias = bias + np.einsum("hwcd,c->d", kernel, offset)
            kernel = kernel * scale[:, None]
        made = InferencePatches if "patches" in self.names else PatchEmbedding
        copy = made(layer.patch_size, layer.hidden_dim, name=layer.name)
        if isinstance(copy, InferencePatches):
            kernel = copy.rows(kernel)
        return self._emit(copy, x, (self._centred(kernel), self._centred(bias)))

    def _added(self, layer, x):
        """Prefix tokens, prompts and positions: constants that join the stream."""
        if isinstance(layer, PromptTokens):
            return self._prompted(layer, x)
        if isinstance(layer, PrefixTokens):
            (values,) = map(self._centred, weights_of(layer))
            if "prefix" not in self.names:
                return self._put_before(values, x, layer.name)
            self.prefix, self.prefix_name = np.concatenate([values, self.prefix], axis=1), layer.name
            return x
        values = self._centred(np.asarray(weights_of(layer)[0] if layer.weights else layer.position, "float64"))
        of_prefix, of_patches = np.split(values, [self.prefix.shape[1]], axis=1)
        self.prefix = self.prefix + of_prefix
        return self._emit(LearnedPositionEmbedding((1, of_patches.shape[1]), name=layer.name), x, [of_patches])

    def _prompted(self, layer: PromptTokens, x):
        (values,) = map(self._centred, weights_of(layer))
        if self.own_prompts:
            self.prompts = values
        elif "prefix" in self.names and not layer.replace and self.prefix.shape[1] >= layer.num_prefix:
            before, after = np.split(self.prefix, [layer.num_prefix], axis=1)
            self.prefix = np.concatenate([before, values, after], axis=1)
            self.prefix_name = self.prefix_name or layer.name
        else:
            copy = PromptTokens(layer.num_tokens, layer.num_prefix, layer.replace, name=layer.name)
            return self._emit(copy, self._with_prefix(x), [values])
        return x

    def _removed(self, layer: TokenRemoval, x):
        """The stream without some of its tokens, unless the last block leaves them out or they were never there."""
        if layer.name == self.stream.layers[-1] and (self.own_prompts or self.num_kept):
            return x
        return self.copies(layer, self._with_prefix(x))

    def _with_prefix(self, x):
        """The tokens, behind those that are still to be put before them."""
        prefix, self.prefix = np.split(self.prefix, [self.prefix.shape[1]], axis=1)
        return self._put_before(prefix, x, self.prefix_name) if prefix.size else x

    def _put_before(self, tokens: np.ndarray, x, name: str):
        return self._emit(PrefixTokens(tokens.shape[1], name=name), x, [tokens])

    def _norm(self, layer: LayerNormalization, x, fold_affine: bool):
        factors = self.smoothing.get(self._path(layer))
        copy = InferenceNormalization(
            layer.epsilon, "centring" not in self.names, not fold_affine, factors is not None, name=self._path(layer)
        )
        if factors is not None:
            return self._emit(copy, x, [factors])
        return self._emit(copy, x, () if fold_affine else weights_of(layer))

    def _normalised(self, layer: LayerNormalization, fold_affine: bool, tokens: np.ndarray) -> np.ndarray:
        """What `_norm` gives for constant tokens."""
        tokens = centred(tokens)
        tokens = tokens / np.sqrt(np.square(tokens).mean(axis=-1, keepdims=True) + layer.epsilon)
        gamma, beta = (1, 0) if fold_affine else weights_of(layer)
        return (tokens * gamma + beta) * self.smoothing.get(self._path(layer), 1)

    def _block(self, block: TransformerBlock, x):
        attention, mlp = block.attention, block.mlp
        qkv, out = product_of(attention.qkv), product_of(attention.out)
        expand, contract = product_of(mlp.expand), product_of(mlp.contract)
        affine, keep = "affine" in self.names, None
        num_prompts = self.prompts.shape[1]
        if affine:
            qkv = after_affine(qkv, *weights_of(block.attention_norm))
            expand = after_affine(expand, *weights_of(block.mlp_norm))
        fold_scale = block.attention_scale is None or "layer_scale" in self.names
        if block.attention_scale is not None and fold_scale:
            out = scaled(out, *weights_of(block.attention_scale))
            contract = scaled(contract, *weights_of(block.mlp_scale))
        out, contract = self._centred_product(out), self._centred_product(contract)
        dim = len(out[1])
        if "query_scale" in self.names:
            factor = np.repeat([attention.head_dim**-0.5, 1.0], [dim, 2 * dim])
            qkv = scaled(qkv, factor)
        if "biases" in self.names:
            qkv, out = without_biases(qkv, out)
        if block.name == self.last_block:
            keep = self.num_kept
        qkv = self._smoothed(qkv, block.attention_norm)
        expand = self._smoothed(expand, block.mlp_norm)

        y = self._norm(block.attention_norm, x, affine)
        if self.prefix.size:
            y = self._put_before(
                self._normalised(block.attention_norm, affine, self.prefix), y, f"{block.name}_attention_prefix"
            )
            x = self._with_prefix(x)
        heads, name = attention.num_heads, self._path(attention)
        options = {"scale_queries": "query_scale" not in self.names, "num_prompts": num_prompts, "name": name}
        options["give_attention"] = self.attention is not None
        query, key, value = zip(*(np.split(part, 3, axis=-1) for part in qkv), strict=True)
        prompts = [self._normalised(block.attention_norm, affine, self.prompts)] if num_prompts else []
        if keep:
            weights = [*prompts, *query, key[0].T, *value, *out]
            y = self._emit(InferenceReadout(heads, keep, **options), y, weights, self.counts)
        else:
            prompts = [tokens @ kernel + bias for tokens in prompts for kernel, bias in (key, value)]
            weights = [*prompts, *query, *key, *value, *out]
            y = self._emit(InferenceAttention(heads, **options), y, weights, self.counts)
        if self.attention:
            y = self.attention.take(*y)
        if not fold_scale:
            y = self._emit(LayerScale(name=self._path(block.attention_scale)), y, weights_of(block.attention_scale))
        if keep:
            x = TokenSlice(0, keep, name=f"{block.name}_read")(x)
        x = keras.layers.Add(name=f"{block.name}_attention_add")([x, y])
        y = self._norm(block.mlp_norm, x, affine)
        copy = InferenceMLP(mlp.mlp_dim, mlp.approximate_gelu, name=self._path(mlp))
        y = self._emit(copy, y, [*expand, *contract])
        if not fold_scale:
            y = self._emit(LayerScale(name=self._path(block.mlp_scale)), y, weights_of(block.mlp_scale))
        return self._merged(block, keras.layers.Add(name=f"{block.name}_mlp_add")([x, y]))

    def _merged(self, block: TransformerBlock, x):
        """Merges patches behind one block, and behind the last gives who reads all tokens as many as there were."""
        if block.name == self.merged_block:
            height, width = patch_grid(self.flat)
            merged = min(round(self.merge_tokens * height * width), height * width // 2)
            if merged:
                layer = TokenMerging(merged, x.shape[1] - height * width, name="token_merging")
                x, counts, self.places = layer(x)
                self.counts = (counts,)
        if block.name == self.last_block and self.places is not None and self.unmerges:
            return TokenUnmerging(name="token_unmerging")(x, self.places)
        return x

    def _smoothed(self, product: Product, norm: LayerNormalization) -> Product:
        """The product that takes a LayerNorm's smoothed results."""
        factors = self.smoothing.get(self._path(norm))
        return product if factors is None else (product[0] / factors[:, None], product[1])
