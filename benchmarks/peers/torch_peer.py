"""Peer: plain PyTorch in the style of tutorials: a DataLoader with two workers that transform one image at a time."""

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import Answer, Clock, Job, main, majority, read_images, time_passes
from benchmarks.works import VOTE, Work, load_work
from fmcli.recipe.augment import AugmentSpec
from fmcli.recipe.layers import (
    Activate,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool,
)
from fmcli.recipe.optimizer import AdamSpec, AdamWSpec, MuonSpec, OptimizerSpec, SgdSpec
from fmcli.recipe.tracing import LayerTrace, pair, same_padding

WORKERS = 2
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def build_network(traces: Sequence[LayerTrace]) -> nn.Sequential:
    """Return the network of a recipe as a sequence of torch.nn modules."""
    return nn.Sequential(*itertools.chain.from_iterable(map(build_layer, traces)))


def build_layer(trace: LayerTrace) -> Iterator[nn.Module]:
    """Yield the modules for a layer of a recipe."""
    layer = trace.layer
    match layer:
        case Conv():
            yield from build_conv(layer, trace.input_shape)
        case Dense():
            yield nn.Linear(trace.input_shape[0], layer.units, bias=layer.bias)
        case MaxPool():
            yield nn.MaxPool2d(layer.size, layer.stride)
        case AvgPool():
            yield nn.AvgPool2d(layer.size, layer.stride)
        case GlobalMaxPool():
            yield from (nn.AdaptiveMaxPool2d(1), nn.Flatten())
        case GlobalAvgPool():
            yield from (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case BatchNorm():
            kind = nn.BatchNorm2d if len(trace.input_shape) == 3 else nn.BatchNorm1d
            yield kind(trace.input_shape[0], eps=layer.eps, momentum=layer.momentum)
        case Dropout():
            yield nn.Dropout(layer.rate)
        case Flatten():
            yield nn.Flatten()
        case Activate():
            yield ACTIVATIONS[layer.function]()
    if isinstance(layer, Conv | Dense | BatchNorm) and layer.activation is not None:
        yield ACTIVATIONS[layer.activation]()


def build_conv(layer: Conv, input_shape: tuple[int, ...]) -> Iterator[nn.Module]:
    """Yield a convolution, after a padding module if its padding is asymmetric, which Conv2d does not support."""
    channels, *sides = input_shape
    kernel, stride = pair(layer.kernel_size), pair(layer.stride)
    padding = (0, 0)
    if layer.padding == "same":
        (top, bottom), (left, right) = (same_padding(*axis) for axis in zip(sides, kernel, stride, strict=True))
        if (top, left) == (bottom, right):
            padding = (top, left)
        else:
            yield nn.ZeroPad2d((left, right, top, bottom))
    yield nn.Conv2d(channels, layer.filters, kernel, stride=stride, padding=padding, bias=layer.bias)


def build_optimizer(spec: OptimizerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer, but AdamW instead of Muon: AdamW is the usual choice in PyTorch, and less work."""
    match spec:
        case AdamSpec():
            return torch.optim.Adam(model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps)
        case AdamWSpec() | MuonSpec():
            return torch.optim.AdamW(
                model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay
            )
        case SgdSpec():
            return torch.optim.SGD(
                model.parameters(),
                lr=spec.lr,
                momentum=spec.momentum,
                nesterov=spec.nesterov,
                weight_decay=spec.weight_decay,
            )


def find_penalties(work: Work, model: nn.Sequential) -> list[tuple[float, nn.Parameter]]:
    """Return each L2 factor in the recipe with the weights of its layer."""
    factors = [trace.layer.l2 for trace in work.traces if isinstance(trace.layer, Conv | Dense)]
    weights = [module.weight for module in model if isinstance(module, nn.Conv2d | nn.Linear)]
    return [(factor, weight) for factor, weight in zip(factors, weights, strict=True) if factor]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images with a transform, like the datasets of torchvision."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.uint8], augment: AugmentSpec) -> None:
        from torchvision.transforms import InterpolationMode, v2  # takes two seconds

        self.images, self.labels = images, labels
        steps: list[v2.Transform] = [v2.ToImage()]
        if augment.rotate or augment.translate:
            shift = (augment.translate, augment.translate)
            steps.append(v2.RandomAffine(augment.rotate, translate=shift, interpolation=InterpolationMode.BILINEAR))
        self.transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def make_loader(job: Job, split: str, batch_size: int, augment: AugmentSpec, *, shuffle: bool) -> DataLoader:
    """Return a loader of a split. With `shuffle`, all batches have the same size."""
    images, labels = read_images(job, split, multiple_of=batch_size if shuffle else 1)
    return DataLoader(
        ImageDataset(images, labels, augment),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=WORKERS,
        pin_memory=job.device == "cuda",
    )


class Training:
    """A network with its images, optimizer and training loop."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.job, self.device = job, torch.device(job.device)
        self.work = load_work(job.work, augment=job.augment)
        self.model = build_network(self.work.traces).to(self.device)
        self.optimizer = build_optimizer(self.work.member.optimizer, self.model)
        self.penalties = find_penalties(self.work, self.model)
        self.loader = make_loader(job, "train", self.work.batch_size, self.work.member.augment, shuffle=True)

    def epoch(self) -> Iterator[None]:
        """Train for one epoch; yield after each step."""
        criterion = nn.CrossEntropyLoss()
        running_loss = 0.0
        self.model.train()
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)  # noqa: PLW2901
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.job.bf16):
                loss = criterion(self.model(images), labels)
            for factor, weight in self.penalties:
                loss = loss + factor * weight.square().sum()
            loss.backward()
            self.optimizer.step()
            running_loss += loss.item()
            yield


def train(job: Job) -> Answer:
    """Time steps of the training loop."""
    training = Training(job)
    synchronize = torch.cuda.synchronize if job.device == "cuda" else lambda: None
    clock = Clock(job.seconds, training.work.batch_size, synchronize)
    steps = itertools.chain.from_iterable(training.epoch() for _ in itertools.count())
    next(step for step in steps if clock.step())
    return clock.answer()


def epoch(job: Job) -> Answer:
    """Train for one epoch."""
    list(Training(job).epoch())
    return {}


def first_step(job: Job) -> Answer:
    """Train for one step."""
    next(Training(job).epoch())
    return {}


def accuracy(job: Job) -> Answer:
    """Train for the epochs of the recipe at a constant learning rate. Test after each epoch; testing is not timed."""
    training = Training(job)
    test = make_loader(job, "t10k", 512, AugmentSpec(), shuffle=False)
    curve, seconds = [], 0.0
    for _ in range(training.work.member.trainer.epochs):
        started = time.perf_counter()
        list(training.epoch())
        seconds += time.perf_counter() - started
        labels = evaluate([training.model], test, training.device, bf16=job.bf16)
        curve.append([seconds, float((labels == test.dataset.labels).mean())])
    return {"members": {job.work: curve}, "train_seconds": seconds}


def evaluate(models: Sequence[nn.Module], loader: DataLoader, device: torch.device, *, bf16: bool) -> NDArray[np.int64]:
    """Return the labels of the majority vote."""
    logits: list[Tensor] = []
    for model in models:
        model.eval()
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        for images, _ in loader:
            images = images.to(device)  # noqa: PLW2901
            logits.append(torch.stack([model(images) for model in models]).float().cpu())
    return majority(torch.cat(logits, dim=1).numpy())


def predict(job: Job) -> Answer:
    """Time the vote of three untrained networks, in one pass over the images."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    models = [build_network(load_work(name).traces).to(device) for name in VOTE]
    loader = make_loader(job, "t10k", 512, AugmentSpec(), shuffle=False)
    return time_passes(lambda: evaluate(models, loader, device, bf16=job.bf16), len(loader.dataset), job.seconds)


if __name__ == "__main__":
    main({"train": train, "epoch": epoch, "first_step": first_step, "accuracy": accuracy, "predict": predict})
