"""The perks of StyleGAN2 (paper section 4.3): images projected to styles and animated, motions swapped between
videos, styles edited by text.

A set of styles (1, L, W), one for each layer, is what all of them deal in. `save_latent` writes it to a file that
generation takes: `--set latent=FILE` animates it, `--set motion_seed=N` by another motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.systems.stylegan_v.rollout import Film

if TYPE_CHECKING:
    from longtake.systems.stylegan_v.system import StyleGANV

T = TypeVar("T")
Distance = Callable[[Tensor, Tensor], Tensor]
"""Two images (1, 3, H, W) in [-1, 1] -> (1,)."""
SAMPLES = 10_000
"""Styles from which their mean and deviation are estimated."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Still:
    """A frame of a video as a function of its styles, its motion fixed.

    Args:
        seed: of the motion.
        time: of the frame, 0 or more; an image is projected to time 0 (paper).
        label: class index.
    """

    def __init__(self, system: StyleGANV, seed: int = 0, time: float = 0.0, label: int = 0):
        self.system, self.generator = system.eval(), system.generator
        film = Film(system, seed, motion=seed)
        with torch.no_grad():
            film.enter(label)
            self.one_hot, self.own = film.one_hot, film.ws.clone()
            self.code = film.codes(torch.tensor([time], dtype=torch.float64)).clone()

    def __call__(self, ws: Tensor) -> Tensor:
        """Styles (1, L, W) -> frame (1, 3, H, W); gradients reach the styles."""
        code, modulations = self.generator.modulate(ws, self.code[None])
        return self.generator.synthesis(code, modulations)

    def spread(self) -> tuple[Tensor, float]:
        """Mean style (W,) of the class, and the deviation of styles from it."""
        with torch.no_grad():
            z = Rng(["spread"]).normal("content", range(SAMPLES), (self.system.config.mapping.noise,))[0]
            w = self.generator.mapping(z.to(self.system.device), self.one_hot.expand(SAMPLES, -1))
            return w.mean(0), float((w - w.mean(0)).square().sum(1).mean().sqrt())


def project(
    system: StyleGANV,
    image: Tensor,
    *,
    seed: int = 0,
    label: int = 0,
    distance: Distance | None = None,
    steps: int = 1000,
    lr: float = 0.1,
    noise: float = 0.05,
    seen: Callable[[int, float], None] | None = None,
) -> Tensor:
    """The styles that show an image at time 0 (paper section 4.3; schedule of StyleGAN2, released code).

    Args:
        image: (3, H, W) in [-1, 1], of the model's size.
        seed: of the motion, which stays fixed; the video of the same motion begins with the image.
        distance: LPIPS or another distance (`systems.perceptual.load_perceptual`), which is moved to the model's
            device; None: `pyramid_distance`.
        steps, lr, noise: of the optimisation; noise on the styles fades over the first three quarters.
        seen: called with (step, distance).

    Raises:
        UserError: an image of another size, or one that is not finite.
    """
    if tuple(image.shape) != (3, *system.config.size):
        height, width = system.config.size
        raise UserError(
            f"the image is {tuple(image.shape)}, but this model makes (3, {height}, {width}); resize it"
        )
    if not image.isfinite().all():
        raise UserError("the image holds values that are no numbers; give pixels in [-1, 1]")
    still, measure = Still(system, seed, label=label), beside(system, distance or pyramid_distance)
    mean, deviation = still.spread()
    start = mean.expand(1, system.generator.synthesis.styles, -1)
    target = image.to(system.device)[None]
    disturb = Rng([f"projection {seed}"])

    def loss(ws: Tensor, step: int) -> Tensor:
        strength = deviation * noise * max(0.0, 1 - step / steps / 0.75) ** 2
        disturbed = ws + strength * disturb.normal("noise", step, tuple(ws.shape[1:])).to(ws)
        return measure(still(disturbed), target).sum()

    return optimise(system, start, loss, steps, lr, seen)


def optimise(
    system: StyleGANV,
    start: Tensor,
    loss: Callable[[Tensor, int], Tensor],
    steps: int,
    lr: float,
    seen: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Adam on styles: the rate rises over the first twentieth of the steps and falls along a cosine over the last
    quarter (StyleGAN2, released code)."""
    ws = start.detach().clone().requires_grad_(True)
    adam = torch.optim.Adam([ws], lr=lr, betas=(0.9, 0.999))
    frozen = [p for p in system.generator.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        for step in range(steps):
            done = step / steps
            fall = min(1.0, (1 - done) / 0.25)
            rate = lr * (0.5 - 0.5 * math.cos(math.pi * fall)) * min(1.0, (step + 1) / max(1.0, steps * 0.05))
            adam.param_groups[0]["lr"] = rate
            value = loss(ws, step)
            (ws.grad,) = torch.autograd.grad(value, ws)
            adam.step()
            if seen:
                seen(step, float(value.detach()))
    finally:
        for p in frozen:
            p.requires_grad_(True)
    return ws.detach()


def beside(system: StyleGANV, network: T) -> T:
    """A network that was brought, on the system's device; a mere function as it is."""
    return network.to(system.device) if isinstance(network, nn.Module) else network


def pyramid_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference (B,) at every resolution from the image's to 8 pixels: needs no weights."""
    total = torch.zeros(len(a), device=a.device)
    while True:
        total = total + (a - b).square().mean((1, 2, 3))
        if min(a.shape[2:]) < 16:
            return total
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)


def edit_with_clip(
    system: StyleGANV,
    ws: Tensor,
    clip: nn.Module,
    tokens: dict[str, Tensor],
    *,
    seed: int = 0,
    label: int = 0,
    keep: float = 5e-4,
    steps: int = 40,
    lr: float = 0.1,
    identity: Distance | None = None,
    seen: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Styles whose frame at time 0 fits a text better (StyleCLIP's optimisation, Patashnik et al., ICCV 2021).

    The official code draws other motion at every step and leaves out CLIP's normalisation of images; here the
    motion stays fixed and the images are normalised.

    Args:
        ws: styles (1, L, W) to begin with, from `project` or `styles_of`.
        clip: a `transformers.CLIPModel`; it and `identity` are moved to the model's device.
        tokens: what its tokenizer makes of the text (see `load_clip`).
        seed: of the motion.
        keep: weight of the squared distance from the first styles.
        identity: what must not change between the first frame and the edited one, or None.
    """
    still, model = Still(system, seed, label=label), beside(system, clip).eval()
    tokens = {name: value.to(system.device) for name, value in tokens.items()}
    ws, identity = ws.to(system.device), identity and beside(system, identity)
    side = int(getattr(model, "config").vision_config.image_size)  # noqa: B009 (a module's attributes have no types)
    with torch.no_grad():
        text = embedding(model, "text", **tokens)
        before = still(ws)

    def loss(current: Tensor, step: int) -> Tensor:
        frame = still(current)
        fit = embedding(model, "image", pixel_values=clip_pixels(frame, side)) @ text.T
        total = (1 - fit).sum() + keep * (current - ws).square().sum()
        return total if identity is None else total + identity(frame, before).sum()

    return optimise(system, ws, loss, steps, lr, seen)


def embedding(model: Any, kind: str, **inputs: Tensor) -> Tensor:
    """Unit embeddings (B, D) of what CLIP sees or reads."""
    encoder, head = (
        (model.vision_model, model.visual_projection)
        if kind == "image"
        else (model.text_model, model.text_projection)
    )
    return F.normalize(head(encoder(**inputs).pooler_output).float(), dim=-1)


def clip_pixels(frame: Tensor, side: int) -> Tensor:
    """Frames (B, 3, H, W) in [-1, 1] as CLIP wants them: (B, 3, side, side)."""
    pixels = F.interpolate((frame + 1) / 2, (side, side), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v, device=frame.device).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels.clamp(0, 1) - mean) / std


def load_clip(folder: str | Path, text: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A CLIP that you bring, in the layout of transformers, and the tokens of a text; code beside it is not run.

    Raises:
        UserError: transformers is missing, or the folder holds no CLIP.
    """
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError:
        message = "editing by text needs transformers; install it with: pip install 'longtake[text]'"
        raise UserError(message, code=2) from None
    try:
        model: Any = CLIPModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokens = tokenizer(text, return_tensors="pt")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no CLIP ({str(error).splitlines()[0]})", code=2) from None
    return model, {name: tokens[name] for name in ("input_ids", "attention_mask")}


def styles_of(system: StyleGANV, seed: int, label: int = 0) -> Tensor:
    """The styles (1, L, W) of a video, as the settings truncate them."""
    return Still(system, seed, label=label).own


def save_latent(ws: Tensor, path: str | Path, label: int = 0) -> None:
    """Write styles (1, L, W) to a .safetensors file, for `--set latent=FILE`, and the class that `project` or
    `edit_with_clip` was given: the motion depends on it, so videos are of this class unless told otherwise."""
    save_file({"ws": ws.detach().cpu().contiguous(), "label": torch.tensor(label)}, str(path))


def swap_motions(
    system: StyleGANV, contents: Sequence[int], motions: Sequence[int], frames: int, label: int = 0
) -> Tensor:
    """Every content under every motion: (contents, motions, 3, frames, H, W); seeds as in generation."""
    settings = system.settings
    if frames < 1 or not contents or not motions:
        raise UserError("swapping motions needs a content, a motion and a frame at least; give one or more of each")
    times = torch.arange(frames, dtype=torch.float64) + settings.start
    rows = []
    system.eval()
    try:
        with torch.inference_mode():
            for content in contents:
                row = []
                for motion in motions:
                    system.settings = replace(settings, motion_seed=motion)
                    row.append(Film(system, content).frames(times, [label] * frames))
                rows.append(torch.stack(row))
    finally:
        system.settings = settings
    return torch.stack(rows)
