"""Train the compact reader's weights from nothing, on one core.

    python -m model_export.encoders.compact.pretrain --out FILE.npz --minutes 35

The learning rate follows the time that is given. A checkpoint lies beside the weights, and the same command
goes on from it. At first the network is told where each letter was drawn, then CTC alone goes on.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.encoders.compact.reader import ALPHABET, WEIGHTS, CompactNet, save_weights
from model_export.encoders.compact.synthetic import SIZES, SyntheticBatch, SyntheticStrips
from model_export.encoders.ctc import BLANK, character_accuracy, spelled
from service.core.progress import ProgressBar
from service.core.whole_files import write_whole

SECONDS_PER_CHECKPOINT = 120.0
LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.02
CLIP_NORM = 1.0
EASY_STEPS = 600  # one size, clean, short strips
PLACES_UNTIL = 0.15  # of the training, the frame of each letter is told, ever less loudly
EASY_SHAPE = (64, 64)  # strips, and pixels of width
SHAPES = ((64, 64), (48, 128), (28, 216))
SHAPE_SHARES = (0.1, 0.5, 0.4)
HELD_OUT_SEED = 1_000_003
HELD_OUT_WIDTH_PX = 216


@dataclass
class Progress:
    """Where a training stands."""

    step: int = 0
    elapsed_s: float = 0.0
    best: float = -1.0  # character accuracy of the weights that are kept


def pretrain(
    out: Path,
    *,
    minutes: float,
    seed: int,
    max_steps: int | None = None,
    num_held_out: int = 64,
    num_strips: int | None = None,
) -> dict[str, float]:
    """Train for `minutes` or `max_steps`. Meanwhile `out` holds the best weights so far, at the end the last.

    Returns the character accuracy at each size in the end, on strips that no training sees.
    """
    torch.manual_seed(seed)
    network = CompactNet()
    network.look.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth faster on a CPU
    optimizer = _optimizer(network)
    checkpoint = out.with_suffix(".checkpoint")
    progress = _resume(checkpoint, network, optimizer)
    held_out = _held_out(num_held_out)
    # A stream of its own from each start, so that going on does not repeat what was seen.
    source = SyntheticStrips(seed + progress.step)
    plan = Random(seed + progress.step)
    limit_s, before_s = minutes * 60, progress.elapsed_s
    found: dict[str, float] = {}
    with ProgressBar(initial=progress.step, total=max_steps, unit="step", mininterval=2.0) as bar:
        begun = saved = time.monotonic()
        while progress.elapsed_s < limit_s and (max_steps is None or progress.step < max_steps):
            done = progress.elapsed_s / limit_s
            if max_steps is not None:
                done = max(done, progress.step / max_steps)
            batch = _next_batch(source, plan, progress.step, num_strips)
            loss = _train_step(network, optimizer, batch, progress.step, done)
            progress.step += 1
            now = time.monotonic()
            progress.elapsed_s = before_s + now - begun
            bar.update()
            if progress.step % 50 == 0:
                bar.set_postfix(loss=f"{loss:.3f}", **found, refresh=False)
            if now - saved > SECONDS_PER_CHECKPOINT:
                saved = now
                found = _keep(out, checkpoint, network, optimizer, progress, held_out)
    found = _keep(out, checkpoint, network, optimizer, progress, held_out)
    save_weights(network, out)  # the learning rate has come to rest, so what is better is so by chance
    return found


def _optimizer(network: CompactNet) -> torch.optim.Optimizer:
    """AdamW that lets gains, offsets and the nearness of frames grow as they must."""
    matrices: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, value in network.named_parameters():
        (matrices if value.ndim > 1 and not name.endswith("nearness") else others).append(value)
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))


def _next_batch(source: SyntheticStrips, plan: Random, step: int, num_strips: int | None) -> SyntheticBatch:
    if step < EASY_STEPS:
        count, width_px = EASY_SHAPE
        return source.batch(num_strips or count, width_px, size=SIZES[0])
    count, width_px = plan.choices(SHAPES, SHAPE_SHARES)[0]
    return source.batch(num_strips or count, width_px)


def _train_step(
    network: CompactNet, optimizer: torch.optim.Optimizer, batch: SyntheticBatch, step: int, done: float
) -> float:
    """One step; returns the loss a letter."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * warm * (0.01 + 0.99 * (1 + cos(pi * min(done, 1.0))) / 2)
    network.train()
    with torch.autocast("cpu", torch.bfloat16):  # nearly twice as fast where the processor has it
        logits = network.letters(network(batch.strips))  # [strip, frame, letter]
    log_probs = logits.float().log_softmax(dim=2)
    loss = _ctc_loss(log_probs, batch)
    telling = max(0.0, 1 - done / PLACES_UNTIL)
    if telling:
        loss = loss + telling * F.nll_loss(log_probs.flatten(0, 1), batch.frame_letters.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
    optimizer.step()
    return loss.item()


def _ctc_loss(log_probs: Tensor, batch: SyntheticBatch) -> Tensor:
    """Of each letter. Lines too dense for their frames are left out."""
    num_frames = torch.full((len(batch.strips),), log_probs.shape[1])
    summed = F.ctc_loss(
        log_probs.transpose(0, 1),
        batch.targets,
        num_frames,
        batch.num_letters,
        blank=BLANK,
        reduction="sum",
        zero_infinity=True,
    )
    return summed / batch.num_letters.sum()


def _held_out(count: int) -> dict[str, SyntheticBatch]:
    source = SyntheticStrips(HELD_OUT_SEED)
    return {
        f"{height_px}px/{squeeze}": source.batch(count, HELD_OUT_WIDTH_PX, size=(height_px, squeeze))
        for height_px, squeeze in SIZES
    }


@torch.no_grad()
def _accuracies(network: CompactNet, held_out: dict[str, SyntheticBatch]) -> dict[str, float]:
    network.eval()
    found = {}
    for name, batch in held_out.items():
        letters = network.letters(network(batch.strips)).argmax(dim=2)  # [strip, frame]
        read = [spelled(row, ALPHABET) for row in letters.numpy()]
        found[name] = round(character_accuracy(batch.texts, read), 4)
    return found


def _keep(
    out: Path,
    checkpoint: Path,
    network: CompactNet,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    held_out: dict[str, SyntheticBatch],
) -> dict[str, float]:
    """Measure, write the weights if they are the best so far, and the checkpoint whole or not at all."""
    found = _accuracies(network, held_out)
    mean = sum(found.values()) / len(found)
    if mean >= progress.best:
        progress.best = mean
        save_weights(network, out)
    state = network.state_dict(), optimizer.state_dict(), vars(progress)
    write_whole(checkpoint, lambda partial: torch.save(state, partial))
    ProgressBar.write(f"step {progress.step}, {progress.elapsed_s / 60:.1f} min: {found}")
    return found


def _resume(checkpoint: Path, network: CompactNet, optimizer: torch.optim.Optimizer) -> Progress:
    if not checkpoint.is_file():
        return Progress()
    weights, state, progress = torch.load(checkpoint)
    network.load_state_dict(weights)
    optimizer.load_state_dict(state)
    return Progress(**progress)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the weights, .npz")
    parser.add_argument("--minutes", type=float, default=35.0, help="of training, all starts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="end after so many steps at the latest")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pretrain(options.out, minutes=options.minutes, seed=options.seed, max_steps=options.max_steps)


if __name__ == "__main__":
    main()
