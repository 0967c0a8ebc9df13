"""The variant of 256 pixels: `python -m recipes.pocket.large --sprites S --model src/limelight/pocket --out DIR ...`

Another autoencoder for the same latents: 256 x 256 pixels to 16 x 16 x 4, one level more than the model's own, begun as
that one followed by an enlargement. Its encoder learns to say what the model's own says of the same scene at 128
pixels. Its decoder learns from those latents, and from latents that the denoiser itself has drawn anew from some noise
on, so that it makes up for the denoiser's uneven hand. The denoiser stays as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

import limelight

from .scenes import SIDE, Composer
from .training import Run, arguments, precision
from .vae import begin_plainly, reconstruction_loss, save_rows, to_tensor

ZOOM = 2
REDRAWN = 0.75  # share of scenes whose latents the denoiser has drawn anew
NOISED = (100, 400)  # from which timestep on, of 1000
STRIDES = 5  # steps of DDIM from there


def _one_further(found: re.Match[str]) -> str:
    return f"encoder.down_blocks.{int(found[1]) + 1}"


def enlarged(vae: AutoencoderKL) -> AutoencoderKL:
    """An autoencoder of images twice as wide and high for the same latents; at first it enlarges plainly."""
    widths = vae.config.block_out_channels
    config = dict(vae.config) | {
        "block_out_channels": (widths[0], *widths),
        "down_block_types": ("DownEncoderBlock2D",) * (len(widths) + 1),
        "up_block_types": ("UpDecoderBlock2D",) * (len(widths) + 1),
        "sample_size": ZOOM * SIDE,
    }
    large = AutoencoderKL.from_config(config)
    state = {}
    for name, value in vae.state_dict().items():
        state[re.sub(r"^encoder\.down_blocks\.(\d+)", _one_further, name)] = value
    unexpected = large.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, unexpected

    first, last = large.encoder.down_blocks[0], large.decoder.up_blocks[-1]
    grown = large.decoder.up_blocks[-2].upsamplers[0]
    begin_plainly([*first.modules(), *last.modules(), grown], random=0.0)
    with torch.no_grad():
        for module in (first.downsamplers[0], grown):
            module.conv.bias.zero_()
    return large


class Autoencode(nn.Module):
    """Pixels at 256 and latents to (what the encoder says of the pixels, what the decoder makes of the latents)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.encode(pixels).latent_dist.mean, self.vae.decode(latents).sample


@torch.no_grad()
def redrawn(model: limelight.Model, latents: Tensor, captions: list[str], rng: np.random.Generator) -> Tensor:
    """Latents as the denoiser draws them by their captions, from some noise on. [B, 4, 16, 16], of unit variance."""
    scheduler, conditioning = model.pipeline.scheduler, model.encode([model.prompt(caption) for caption in captions])
    noise, clean = torch.randn_like(latents), latents
    for now in np.linspace(int(rng.integers(*NOISED)), 0, STRIDES + 1).round().astype(int)[:-1]:
        time, level = torch.tensor(now, device=latents.device), scheduler.alphas_cumprod[now]
        x = scheduler.add_noise(clean, noise, time[None])
        velocity = model.predict(x, time, conditioning)
        clean = level.sqrt() * x - (1 - level).sqrt() * velocity
        noise = level.sqrt() * velocity + (1 - level).sqrt() * x
    return clean


@torch.no_grad()
def report(model: limelight.Model, large: AutoencoderKL, composer: Composer, count: int, seed: int) -> None:
    """Print how near to fresh scenes its images come, and how near those that are the model's own, enlarged: PSNR in dB
    of latents that the encoder made, and of those drawn anew."""
    own, scale, rng = model.pipeline.vae, model.pipeline.vae.config.scaling_factor, np.random.default_rng((seed, 7))
    torch.manual_seed(seed)
    scenes = [composer.scene(rng) for _ in range(count)]
    pixels = to_tensor([scene.pixels for scene in scenes], str(model.device))
    latents = own.encode(F.avg_pool2d(pixels, ZOOM)).latent_dist.mean
    again = redrawn(model, latents * scale, [scene.caption for scene in scenes], rng) / scale
    for name, z in (("encoded", latents), ("drawn anew", again)):
        enlargement = F.interpolate(own.decode(z).sample, scale_factor=ZOOM, mode="bicubic")
        errors = [
            (image.clamp(-1, 1) - pixels).square().mean((1, 2, 3)) for image in (enlargement, large.decode(z).sample)
        ]
        one, two = (float((10 * torch.log10(4 / error)).mean()) for error in errors)
        print(f"{name}: enlarged {one:.2f} dB, this {two:.2f} dB")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sprites", type=Path, required=True, help="sprites of 256 pixels")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model for whose latents it is")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = limelight.load(str(args.model), device=args.device, dtype=torch.float32)
    own, scale = model.pipeline.vae, model.pipeline.vae.config.scaling_factor
    composer = Composer(args.sprites, ZOOM)
    run = Run(Autoencode(enlarged(own).train()), args)
    for step in run.steps():
        rng = np.random.default_rng((args.seed, step, run.rank))
        torch.manual_seed(int(rng.integers(2**63)))
        scenes = [composer.scene(rng) for _ in range(run.share)]
        pixels = to_tensor([scene.pixels for scene in scenes], args.device)
        with torch.no_grad():
            wanted = own.encode(F.avg_pool2d(pixels, ZOOM)).latent_dist.mean
            chosen = torch.from_numpy(rng.random(run.share) < REDRAWN).to(args.device)
            latents = wanted.clone()
            if chosen.any():
                captions = [scene.caption for scene, one in zip(scenes, chosen, strict=True) if one]
                latents[chosen] = redrawn(model, wanted[chosen] * scale, captions, rng) / scale
        with precision(args):
            said, drawn = run.model(pixels, latents)
        run.update(reconstruction_loss(pixels, drawn.float()) + (said.float() - wanted).square().mean())
        if run.rank == 0 and step % 250 == 249:
            with run.averaged() as averaged, torch.no_grad():
                save_rows(args.out / f"sheet-{step + 1:06d}.png", pixels, averaged.vae.decode(latents).sample)
    if run.rank == 0:
        with run.averaged() as averaged:
            averaged.vae.save_pretrained(args.out / "vae")
            report(model, averaged.vae, composer, 96, args.seed)


if __name__ == "__main__":
    main()
