"""Fast decoding: tokens one after another from a transformer, with its weights packed for small batches.

The same mathematics as `Transformer.forward` with a `KVCache`, arranged for speed: a prefill in one pass, then
steps that touch each weight once, write one cache slot a layer and read only the filled part of the cache.
Shapes: B rows, n tokens, C width, H heads, D = C / H, L positions, V ids.
"""

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from longtake.errors import UserError
from longtake.nn.attention import causal_mask
from longtake.nn.cache import KVCache
from longtake.nn.precision import fast_bfloat16
from longtake.nn.transformer import Block, Transformer
from longtake.rollout.sampling import SamplingSettings, filter_logits, sample

Precision = Literal["float32", "bfloat16", "int8"]
PackedLinear = Callable[[Tensor], Tensor]  # (rows, in) -> (rows, out)
Draw = Callable[[Tensor], Tensor]  # probabilities (B, V) -> ids (B,)
SMALL_WEIGHT = 2**20
"""Bytes below which oneDNN's blocked layout is not worth its overhead a call."""


def pack_linear(
    weight: Tensor, bias: Tensor | None, precision: Precision, rows: int | None, gelu: bool = False
) -> PackedLinear:
    """A linear layer (weight (out, in), bias (out,)) laid out for products with few rows.

    float32 and bfloat16 on a CPU with oneDNN are reordered once into its blocked layout, which a product with
    1 to 16 rows reads up to twice as fast as the plain one; below a megabyte the call costs more than it saves, and
    the plain layout stays. A CPU without bfloat16 arithmetic still gains by reading bfloat16 weights when there
    is one row; several rows are multiplied in float32. int8 (CPU only) keeps one scale an output channel
    and quantises the activations on the fly with one scale a row, so rows stay independent. The layer takes
    and returns bfloat16 if that is the precision, else float32. With `gelu`, exact GELU follows. `rows` is the
    usual number of rows; None leaves float weights as they are, which is what `torch.compile` can work with.

    Raises:
        UserError: int8 where there is no oneDNN, or compiled.
    """
    weight = weight.detach()
    bias = None if bias is None else bias.detach()
    if precision == "int8":
        return _pack_int8(weight.float(), None if bias is None else bias.float(), rows, gelu)
    dtype = getattr(torch, precision)
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    on_cpu = weight.device.type == "cpu"
    if dtype == torch.bfloat16 and on_cpu and not fast_bfloat16():
        return _emulated_bfloat16(weight, bias, gelu)
    small = weight.numel() * weight.element_size() < SMALL_WEIGHT
    if rows is None or not on_cpu or not torch.backends.mkldnn.is_available() or small:
        return lambda x: F.gelu(F.linear(x, weight, bias)) if gelu else F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    product = torch.ops.mkldnn._linear_pointwise.default
    after = "gelu" if gelu else "none"
    return lambda x: product(x, packed, bias, after, [], "none")


def _emulated_bfloat16(weight: Tensor, bias: Tensor | None, gelu: bool) -> PackedLinear:
    """bfloat16 weights on a CPU without the arithmetic: only products with one row have a fast kernel."""
    wide = None if bias is None else bias.float()

    def linear(x: Tensor) -> Tensor:
        y = F.linear(x, weight, bias) if len(x) == 1 else F.linear(x.float(), weight.float(), wide).bfloat16()
        return F.gelu(y) if gelu else y

    return linear


def _pack_int8(weight: Tensor, bias: Tensor | None, rows: int | None, gelu: bool) -> PackedLinear:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        raise UserError("int8 weights need a CPU and a PyTorch with oneDNN; use bfloat16 on this device", code=2)
    if rows is None:
        raise UserError("int8 weights cannot be compiled; use bfloat16 or leave compilation off", code=2)
    scales = weight.abs().amax(1).clamp_min(1e-12) / 127
    quantised = (weight / scales[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(quantised, [rows, weight.shape[1]])
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    # Activations are unsigned around `zero`. Eight bits overflow the 16-bit sums of CPUs without VNNI.
    levels = 127 if torch.cpu._is_vnni_supported() else 63
    zero = levels + 1
    rounding = torch.tensor(zero + 0.5)  # the conversion to uint8 cuts the fraction off
    bias = torch.zeros(len(weight)) if bias is None else bias
    product = torch.ops.onednn.qlinear_pointwise.default

    def linear(x: Tensor) -> Tensor:
        scale = x.abs().amax(1, keepdim=True).div_(levels).clamp_min_(1e-12)
        steps = torch.addcdiv(rounding, x, scale).to(torch.uint8)
        y = product(steps, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
        y = torch.addcmul(bias, y, scale)
        return F.gelu(y) if gelu else y

    return linear


class _PackedBlock:
    """The weights of one block."""

    def __init__(self, block: Block, precision: Precision, rows: int | None):
        attention, mlp = block.attention, block.mlp
        self.norm1 = (block.norm1.weight.detach().float(), block.norm1.bias.detach().float())
        self.norm2 = (block.norm2.weight.detach().float(), block.norm2.bias.detach().float())
        self.qkv = pack_linear(attention.qkv.weight, attention.qkv.bias, precision, rows)
        self.out = pack_linear(attention.out.weight, attention.out.bias, precision, rows)
        self.up = pack_linear(mlp.up.weight, mlp.up.bias, precision, rows, gelu=True)
        self.down = pack_linear(mlp.down.weight, mlp.down.bias, precision, rows)


class Decoder:
    """A transformer made ready to decode: packed copies of its weights and a static cache.

    Later changes of the transformer's weights are not seen. The residual stream, the norms and (on the CPU,
    where bfloat16 attention is the slower one) the cache are float32 in every precision.

    Args:
        transformer: what to decode; its device is used.
        batch: number of rows B decoded together.
        precision: of weights and products: "float32", "bfloat16" or "int8" (CPU only).
        compile: compile the single-token step with `torch.compile` at its first use. Its shapes are static, so
            it attends over the whole cache under a mask; on CUDA it becomes one graph launch a token.
    """

    def __init__(
        self,
        transformer: Transformer,
        batch: int,
        precision: Precision = "float32",
        compile: bool = False,
    ):
        config = transformer.config
        self.config = config
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.tokens = transformer.tokens.weight.detach().float()
        self.learned = transformer.position_table().detach().float()
        self.positions = self.learned.clone()
        device = self.tokens.device
        rows = None if compile else batch
        self.blocks = [_PackedBlock(cast(Block, block), precision, rows) for block in transformer.blocks]
        self.norm = (transformer.norm.weight.detach().float(), transformer.norm.bias.detach().float())
        self.head = pack_linear(transformer.head.weight, None, precision, rows)
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        cached = torch.float32 if device.type == "cpu" else self.dtype
        self.cache = KVCache(config.layers, batch, config.heads, config.block, self.head_width, cached, device)
        self._compiled: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        if compile:
            for buffer in (self.cache.keys, self.cache.values):  # lets a CUDA graph write into them
                torch._dynamo.mark_static_address(buffer)
            mode = "reduce-overhead" if device.type == "cuda" else None
            self._compiled = torch.compile(self._static_step, mode=mode, fullgraph=True, dynamic=False)

    @torch.inference_mode()
    def move(self, places: Tensor) -> None:
        """Add `places` (n, C) to the first n learned positions from now on (see `Transformer.crop_positions`)."""
        self.positions.copy_(self.learned)
        self.positions[: len(places)] += places

    @torch.inference_mode()
    def prefill(
        self, tokens: Tensor, places: Tensor | None = None, mask: Tensor | None = None, read: int = -1
    ) -> Tensor:
        """Forget everything, take in `tokens` (B, n) in one pass and return the logits (B, V) at one of them.

        Args:
            tokens: what comes first.
            places: the positions (n,) they stand at; None: 0 .. n - 1.
            mask: boolean (n, n), True where attention is allowed; None: causal.
            read: the token whose logits are wanted.
        """
        self.cache.reset()
        return self.extend(tokens, places, mask, read)

    @torch.inference_mode()
    def extend(
        self, tokens: Tensor, places: Tensor | None = None, mask: Tensor | None = None, read: int = -1
    ) -> Tensor:
        """Take in `tokens` (B, n) behind those held and return the logits (B, V) of the next one.

        `places` (n,) are their positions, where these are not those that follow; `mask` and `read` as in `prefill`.

        Raises:
            ValueError: more tokens than positions, or another batch size than the cache's.
        """
        cache, (B, n) = self.cache, tokens.shape
        start, end = cache.length, cache.length + n
        if end > self.config.block or cache.batch != B:
            raise ValueError(
                f"This decoder takes {cache.batch} rows of {self.config.block} tokens, not {B} of {end}."
            )
        if n == 1 and self._compiled is not None:
            slot = torch.tensor([start], device=tokens.device)
            logits = self._compiled(tokens[:, 0], slot, slot if places is None else places)
            cache.advance(1)
            return logits
        positions = self.positions[start:end] if places is None else self.positions[places]
        x = (self.tokens[tokens] + positions).view(B * n, -1)
        self._pass(x, B, n, mask)
        cache.advance(n)
        x = x.view(B, n, -1)[:, read]
        return self.head(self._normed(x, self.norm)).float()

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm).to(self.dtype)

    def _static_step(self, tokens: Tensor, slot: Tensor, place: Tensor) -> Tensor:
        """One step from tokens (B,) at position `place` (1,), kept in cache slot `slot` (1,), to logits (B, V); its
        shapes never change."""
        cache, B, H, D = self.cache, tokens.shape[0], self.heads, self.head_width
        x = self.tokens[tokens] + self.positions[place]
        mask = torch.arange(cache.capacity, device=x.device) <= slot
        for layer, block in enumerate(self.blocks):
            qkv = block.qkv(self._normed(x, block.norm1)).to(cache.keys.dtype)
            query, key, value = qkv.view(B, 3, H, 1, D).unbind(1)
            keys, values = cache.keys[layer], cache.values[layer]
            keys.index_copy_(2, slot, key)
            values.index_copy_(2, slot, value)
            attended = F.scaled_dot_product_attention(query, keys, values, mask[None, None, None])
            x = x + block.out(attended.reshape(B, H * D).to(self.dtype))
            x = x + block.down(block.up(self._normed(x, block.norm2)))
        return self.head(self._normed(x, self.norm)).float()

    def _pass(self, x: Tensor, B: int, n: int, mask: Tensor | None) -> None:
        """All blocks for n new tokens a row; x (B * n, C) is changed in place."""
        cache, H, D = self.cache, self.heads, self.head_width
        if mask is None and cache.length and n > 1:
            mask = causal_mask(n, cache.length, x.device)
        causal = n > 1 and mask is None  # a single new token may see everything there is
        for layer, block in enumerate(self.blocks):
            qkv = block.qkv(self._normed(x, block.norm1)).to(cache.keys.dtype)
            query, key, value = qkv.view(B, n, 3, H, D).permute(2, 0, 3, 1, 4)
            keys, values = cache.write(layer, key, value)
            attended = F.scaled_dot_product_attention(query, keys, values, mask, is_causal=causal)
            attended = attended.transpose(1, 2).reshape(B * n, H * D)
            x.add_(block.out(attended.to(self.dtype)))
            x.add_(block.down(block.up(self._normed(x, block.norm2))))


def generate_tokens(
    decoder: Decoder,
    prefix: Tensor,
    count: int,
    noise: Tensor | Draw,
    settings: SamplingSettings,
    ids: range | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Continue each row of `prefix` by `count` tokens. A new call starts a new window (a prefill).

    Args:
        decoder: holds the transformer and the cache.
        prefix: (B, p) int64, p >= 1; p + count - 1 must not exceed the transformer's positions.
        count: how many tokens to draw.
        noise: (B, count) uniform numbers in [0, 1), or a function that draws ids (B,) from filtered
            probabilities (B, len(ids)), called once a token.
        settings: temperature, top-k and top-p.
        ids: the contiguous ids that may be drawn, for example the video ids of a joint vocabulary; None: all.
            (The TATS official code draws from all ids and clamps condition ids to code 0.)
        known: (B, count) tokens that are not to be drawn but kept; -1 where there is none.

    Returns:
        (B, count) int64, ids of the joint vocabulary.
    """
    return _draw(decoder, decoder.prefill(prefix), count, noise, settings, ids, known=known)


def fill_between(
    decoder: Decoder,
    before: Tensor,
    after: Tensor,
    count: int,
    noise: Tensor | Draw,
    settings: SamplingSettings,
    ids: range | None = None,
    official: bool = False,
) -> Tensor:
    """The `count` tokens between two ends, each seeing both ends and the tokens before it (TATS section 2.3).

    The ends are taken in once, in one pass, under the mask and at the positions of training.

    Args:
        decoder: of an interpolation transformer.
        before: (B, p) condition tokens and the slice before.
        after: (B, q) the slice after; its last token is never an input, as in training.
        count: how many tokens to draw.
        noise, settings, ids: as in `generate_tokens`.
        official: as the released sampler does: the first token is read off at the last token of `after` instead of
            the last of `before`, `after` stands one position too early, and the ends do not see each other.

    Returns:
        (B, count) int64, ids of the joint vocabulary.
    """
    p, device = before.shape[1], before.device
    ends = torch.cat([before, after if official else after[:, :-1]], 1)
    n = ends.shape[1]
    places = torch.arange(n, device=device)
    places[p:] += count - official
    mask = torch.ones(n, n, dtype=torch.bool, device=device)
    if official:
        mask = causal_mask(n, 0, device)
        mask[:, :p] = True
    logits = decoder.prefill(ends, places, mask, n - 1 if official else p - 1)
    return _draw(decoder, logits, count, noise, settings, ids, place=p)


def _draw(
    decoder: Decoder,
    logits: Tensor,
    count: int,
    noise: Tensor | Draw,
    settings: SamplingSettings,
    ids: range | None,
    place: int | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Draw `count` tokens from `logits` (B, V) on, but for those that are `known` (B, count), where it is not -1;
    `place` is the first one's position, None: behind those held."""
    first, stop = (ids.start, ids.stop) if ids is not None else (0, decoder.config.vocabulary)
    uniforms = noise.to(logits.device) if isinstance(noise, Tensor) else None
    tokens = torch.empty(len(logits), count, dtype=torch.int64, device=logits.device)
    with torch.inference_mode():
        for i in range(count):
            logits = logits[:, first:stop]
            if uniforms is not None:
                drawn = sample(logits, uniforms[:, i], settings)
            else:
                drawn = cast(Draw, noise)(_probabilities(logits, settings))
            tokens[:, i] = drawn + first
            if known is not None:
                tokens[:, i] = torch.where(known[:, i] < 0, tokens[:, i], known[:, i])
            if i + 1 < count:
                places = None if place is None else torch.tensor([place + i], device=logits.device)
                logits = decoder.extend(tokens[:, i : i + 1], places)
    return tokens


def _probabilities(logits: Tensor, settings: SamplingSettings) -> Tensor:
    return filter_logits(logits / settings.temperature, settings.top_k, settings.top_p).softmax(-1)
