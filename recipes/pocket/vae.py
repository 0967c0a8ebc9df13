"""Stage 2: the autoencoder. `torchrun --nproc-per-node 2 -m recipes.pocket.vae --sprites sprites.npz --out DIR ...`

128 x 128 pixels to 16 x 16 x 4 latents. Trained on crowded collages with L1 and L2 on pixels, L1 on
their differences (which keeps flat art sharp) and a small KL term.

With `--begin` only the decoder is trained, so that latents keep their meaning. Half of the collages then have a ground
in the tone of one of their things, which is how white on pale is learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from PIL import Image
from torch import nn

from .scenes import SIDE, Composer
from .training import Run, arguments, precision


def build() -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,  # many small groups would normalise flat colors away
        mid_block_add_attention=False,
        sample_size=SIDE,
    )
    # Begin near an autoencoder that merely averages and enlarges, with little posterior noise. From a random start,
    # colors alone take tens of thousands of images.
    begin_plainly(vae.modules(), random=0.2)
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -6.0
    return vae


@torch.no_grad()
def begin_plainly(modules: Iterable[nn.Module], random: float) -> None:
    """Make identity blocks, and box filters between levels.

    Args:
        random: the share of the filters' random weights that stays.
    """
    for module in modules:
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
        elif isinstance(module, Downsample2D | Upsample2D):
            diagonal = torch.arange(module.conv.out_channels)
            module.conv.weight.mul_(random)
            if isinstance(module, Downsample2D):
                module.conv.weight[diagonal, diagonal, :2, :2] += 0.25
            else:
                module.conv.weight[diagonal, diagonal, 1, 1] += 1.0


def begun(folder: Path) -> AutoencoderKL:
    """A trained autoencoder with a frozen encoder."""
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    return vae.train()


class Autoencode(nn.Module):
    """Pixels to (reconstruction, KL divergence per image) in one call, which is what data parallelism wants."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(x).latent_dist
        return self.vae.decode(posterior.sample()).sample, posterior.kl()


def to_tensor(images: list[np.ndarray], device: str) -> torch.Tensor:
    """uint8 [side, side, 3] images to float [B, 3, side, side] in -1..1."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    edges = sum((torch.diff(x, dim=d) - torch.diff(y, dim=d)).abs().mean() for d in (2, 3))
    return (x - y).abs().mean() + 0.5 * edges + (x - y).square().mean()


@torch.no_grad()
def sheet(vae: AutoencoderKL, composer: Composer, path: Path, device: str) -> None:
    """Eight scenes above their reconstructions."""
    rng = np.random.default_rng(12345)
    x = to_tensor([composer.scene(rng).pixels for _ in range(8)], device)
    y = vae.decode(vae.encode(x).latent_dist.mode()).sample
    save_rows(path, x, y)


def save_rows(path: Path, *rows: torch.Tensor) -> None:
    """Images in -1..1, [B, 3, height, width] a row, as one picture."""
    whole = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(((whole.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()).save(path)


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, composer: Composer, device: str) -> float:
    """The factor that gives the latents of scenes unit variance."""
    rng = np.random.default_rng(54321)
    x = to_tensor([composer.scene(rng).pixels for _ in range(256)], device)
    return 1.0 / float(torch.cat([vae.encode(part).latent_dist.sample() for part in x.split(32)]).std())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--begin", type=Path, help="folder of an autoencoder whose decoder alone is trained further")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    composer = Composer(args.sprites)
    run = Run(Autoencode(begun(args.begin) if args.begin else build()), args)
    faint = 0.5 if args.begin else 0.0
    for step in run.steps():
        rng = np.random.default_rng((args.seed, step, run.rank))
        torch.manual_seed(int(rng.integers(2**63)))  # of the posterior's noise: a resumed run goes on as if unbroken
        x = to_tensor([composer.collage(rng, faint) for _ in range(run.share)], args.device)
        with precision(args):
            output, kl = run.model(x)
        run.update(reconstruction_loss(x, output.float()) + 1e-6 * kl.mean())
        if run.rank == 0 and step % 250 == 249:
            with run.averaged() as model:
                sheet(model.vae, composer, args.out / f"sheet-{step + 1:06d}.png", args.device)
    if run.rank == 0:
        with run.averaged() as model:
            vae = model.vae
            if not args.begin:
                vae.register_to_config(scaling_factor=measure_scale(vae, composer, args.device))
            vae.save_pretrained(args.out / "vae")
            sheet(vae, composer, args.out / "sheet.png", args.device)


if __name__ == "__main__":
    main()
