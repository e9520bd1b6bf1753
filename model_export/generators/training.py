"""The loop that trains every generator, with progress, early stopping and a checkpoint after each validation.

Training sees only `split.train`. The validation users decide when to stop, by item-level NDCG@10 with the
same beam search as in serving. Test users are not used.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import TrainingConfig
from model_export.data.splits import Split, Targets
from model_export.evaluation.metrics import ndcg_at
from model_export.evaluation.ranking import ItemsOfCodes, Ranker, left_padded
from model_export.files import read_or_remove
from model_export.generators.base import Generator
from model_export.generators.beam_search import eager_search
from service.core.graphs import PADDING
from service.core.progress import ProgressBar
from service.core.whole_files import write_whole

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
VALIDATION_BEAMS = 30
VALIDATION_BATCH = 128
WINDOWS_PER_CHUNK = 4096  # sorted by length together


@dataclass
class Curve:
    """The course of a training, for the report. The lists have one entry per validation."""

    step: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    validation_ndcg_at_10: list[float] = field(default_factory=list)
    seconds: float = 0.0
    core_seconds: float = 0.0  # of all cores together; other work on the machine does not change it
    device: str = "cpu"
    stopped: str = ""  # the reason in words; empty while the training runs


def train_generator(
    generator: Generator,
    *,
    codes: NDArray[np.int64],
    split: Split,
    config: TrainingConfig,
    history_length: int,
    seed: int,
    checkpoint: Path,
) -> Curve:
    """Train `generator` in place. At the end it has the best weights.

    codes [item, level]. The file `checkpoint` is written after every validation. If it exists, training
    resumes from it.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator.to(device)
    padding = np.full((1, codes.shape[1]), PADDING)
    codes_of_item = torch.from_numpy(np.concatenate([codes, padding])).to(
        device
    )  # [item + 1, level]; -1 is padding
    optimizer = torch.optim.AdamW(
        generator.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    run = _Progress(generator, optimizer, rng, checkpoint)
    run.resume(device)
    run.curve.device = device.type

    length = history_length + 1
    steps_per_epoch = max(
        1, sum(1 for _ in _batches(split.train, length, generator, config, np.random.default_rng(0)))
    )
    total_steps = min(config.max_epochs * steps_per_epoch, config.max_steps)
    every = max(1, int(config.validate_every_epochs * steps_per_epoch))
    users = some_users(split.validation, config.max_validation_users, seed)
    started = time.monotonic() - run.curve.seconds
    started_core = time.process_time() - run.curve.core_seconds
    losses: list[float] = []
    bar = ProgressBar(
        total=total_steps,
        initial=run.step,
        desc=f"train {type(generator).__name__}",
        unit="step",
        mininterval=0.5,
    )
    generator.train()
    while not run.curve.stopped:
        for window in _batches(split.train, length, generator, config, rng):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(run.step, total_steps, config.warmup_steps)
            loss = generator.loss(codes_of_item[torch.from_numpy(window).to(device)])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(generator.parameters(), config.clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            run.step += 1
            bar.update()
            run.curve.seconds = time.monotonic() - started
            run.curve.core_seconds = time.process_time() - started_core
            out_of_time = run.curve.seconds > config.time_limit_s
            if run.step % every == 0 or run.step >= total_steps or out_of_time:
                ndcg = validate(generator, codes, users, history_length=history_length)
                run.validated(ndcg, float(np.mean(losses)))
                losses = []
                bar.set_postfix(
                    loss=f"{run.curve.train_loss[-1]:.3f}", ndcg10=f"{ndcg:.4f}", best=f"{run.best:.4f}"
                )
                if run.without_gain >= config.patience:
                    run.curve.stopped = f"no better NDCG@10 in {config.patience} validations"
                elif run.step >= total_steps:
                    run.curve.stopped = "all steps done"
                elif out_of_time:
                    run.curve.stopped = f"the time limit of {config.time_limit_s:.0f} s"
                run.save()
                if run.curve.stopped:
                    break
    bar.close()
    generator.load_state_dict(run.best_weights)
    generator.to("cpu").eval()
    return run.curve


@torch.no_grad()
def validate(generator: Generator, codes: NDArray[np.int64], users: Targets, *, history_length: int) -> float:
    """Item-level NDCG@10 over `users` by the eager beam search.

    The items of their history are no answers, unless most targets are among them.
    """
    was_training = generator.training
    generator.eval()
    catalog = ItemsOfCodes.build(generator.spec, codes)
    ranker = Ranker(
        eager_search(generator, catalog),
        catalog,
        history_length=history_length,
        num_beams=VALIDATION_BEAMS,
        beam_limit=VALIDATION_BEAMS * 4,
        batch_size=VALIDATION_BATCH,
    )
    ranked = ranker.rank(users.histories, 10, exclude_history=not users.are_repeats)
    generator.train(was_training)
    return ndcg_at(ranked, users.targets, 10)


class _Progress:
    """The state that a resumed run needs, and the file that stores it."""

    def __init__(
        self,
        generator: Generator,
        optimizer: torch.optim.Optimizer,
        rng: np.random.Generator,
        path: Path,
    ) -> None:
        self.generator = generator
        self.optimizer, self.rng, self.path = optimizer, rng, path
        self.step, self.best, self.without_gain = 0, -1.0, 0
        self.best_weights = generator.state_dict()
        self.curve = Curve()

    def validated(self, ndcg: float, train_loss: float) -> None:
        self.curve.step.append(self.step)
        self.curve.train_loss.append(train_loss)
        self.curve.validation_ndcg_at_10.append(ndcg)
        if ndcg > self.best:
            self.best, self.without_gain = ndcg, 0
            self.best_weights = {name: value.clone() for name, value in self.generator.state_dict().items()}
        else:
            self.without_gain += 1

    def save(self) -> None:
        state = {
            "step": self.step,
            "best": self.best,
            "without_gain": self.without_gain,
            "best_weights": self.best_weights,
            "weights": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
            "curve": asdict(self.curve),
        }
        write_whole(self.path, lambda partial: torch.save(state, partial))

    def resume(self, device: torch.device) -> None:
        if not self.path.exists():
            return
        state = read_or_remove(
            self.path, lambda path: torch.load(path, map_location=device, weights_only=True)
        )
        if state is None:
            return
        self.generator.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch_rng"].cpu())
        self.step, self.best, self.without_gain = state["step"], state["best"], state["without_gain"]
        self.best_weights = state["best_weights"]
        self.curve = Curve(**state["curve"])


def _schedule(step: int, total_steps: int, warmup_steps: int) -> float:
    """The factor of the learning rate: a linear warm-up, then half a cosine down to a twentieth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


def some_users(targets: Targets, limit: int, seed: int) -> Targets:
    """At most `limit` of the users, drawn at random, in their order."""
    if len(targets.users) <= limit:
        return targets
    chosen = np.sort(np.random.default_rng(seed).choice(len(targets.users), size=limit, replace=False))
    return Targets(targets.users[chosen], [targets.histories[row] for row in chosen], targets.targets[chosen])


def _batches(
    sequences: list[NDArray[np.int32]],
    length: int,
    generator: Generator,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.int64]]:
    """One epoch of windows of item indices [batch, position], with -1 on the left. Each target occurs once.

    A batch has windows of similar length, so there is little padding. The batches come in random order.
    """
    make = _windows_by_chunk if generator.learns_every_position else _windows_by_target
    windows = make(sequences, length, rng)
    order = rng.permutation(len(windows))
    batches = []
    for chunk in np.array_split(order, max(1, len(order) // WINDOWS_PER_CHUNK)):
        by_length = chunk[np.argsort([len(windows[i]) for i in chunk], kind="stable")]
        batches += _cut(by_length, windows, config.batch_positions)
    for place in rng.permutation(len(batches)):
        yield left_padded([windows[i] for i in batches[place]])


def _cut(
    by_length: NDArray[np.int64], windows: list[NDArray[np.int32]], max_positions: int
) -> list[list[int]]:
    """Batches of windows, shortest first. A batch has at most `max_positions` with padding, or one window."""
    batches: list[list[int]] = [[]]
    for i in by_length:
        if batches[-1] and (len(batches[-1]) + 1) * len(windows[i]) > max_positions:
            batches.append([])
        batches[-1].append(int(i))
    return batches


def _windows_by_chunk(
    sequences: list[NDArray[np.int32]], length: int, rng: np.random.Generator
) -> list[NDArray[np.int32]]:
    """Cut each sequence into runs that overlap by one item, so each item except the first is a target once.

    The offset is random, so a long history is cut at another place in each epoch.
    """
    windows = []
    for items in sequences:
        stride = length - 1
        first = int(rng.integers(1, stride + 1)) if len(items) > length else min(stride, len(items) - 1)
        for end in range(first, len(items) - 1 + stride, stride):
            window = items[max(0, end - stride) : end + 1]
            if len(window) > 1:
                windows.append(window)
    return windows


def _windows_by_target(
    sequences: list[NDArray[np.int32]],
    length: int,
    rng: np.random.Generator,  # noqa: ARG001  has the signature of _windows_by_chunk
) -> list[NDArray[np.int32]]:
    return [items[max(0, end - length) : end] for items in sequences for end in range(2, len(items) + 1)]
