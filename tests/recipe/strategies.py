"""Hypothesis strategies for whole recipes."""

from hypothesis import strategies as st

from fmcli.recipe import (
    DataSpec,
    EnsembleSpec,
    MemberSpec,
    Recipe,
    ReferenceSpec,
    TrainerSpec,
    data,
    families,
    optimizer,
    schedule,
)
from fmcli.recipe import layers as n
from fmcli.recipe.augment import AlbumentationsSpec, AugmentSpec

NUMBERS = st.floats(-1e9, 1e9)
ABOVE_ZERO = st.floats(1e-9, 1e9)
BELOW_ONE = st.floats(0, 1, exclude_max=True)
PROBABILITY = st.floats(0, 1)
FRACTION = st.floats(0, 1, exclude_min=True, exclude_max=True)
COUNTS = st.integers(1, 10**6)
SIZES = COUNTS | st.tuples(COUNTS, COUNTS)
SEEDS = st.integers(0, 2**32 - 1)
TEXT = st.text(min_size=1, max_size=20)
BOOL = st.booleans()
ACTIVATIONS = st.sampled_from([None, "relu", "gelu", "tanh", "sigmoid"])
INITS = st.sampled_from(["torch", "glorot-uniform", "he-uniform", "he-normal"])


def some(**fields):
    """Return a strategy for dicts with any subset of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def build(spec, optional=None, **required):
    return st.tuples(st.fixed_dictionaries(required), some(**(optional or {}))).map(lambda kv: spec(**kv[0], **kv[1]))


VALIDATION = (
    build(data.FirstImages, first=COUNTS)
    | build(data.RandomFraction, {"seed": SEEDS, "stratify": BOOL}, fraction=FRACTION)
    | st.just(data.OwnValidation(own=True))
)
RESPLIT = build(data.Resplit, {"seed": SEEDS}, train=st.floats(0.1, 0.5), validation=st.floats(0, 0.4))
NORMALIZE = st.sampled_from(["standard", "unit", "symmetric"]) | build(
    data.PixelScale, {"divide_by": ABOVE_ZERO, "mean": NUMBERS, "std": ABOVE_ZERO}
)
DATA = build(
    DataSpec,
    {"classes": st.lists(TEXT, min_size=1, unique=True).map(tuple), "normalize": NORMALIZE},
    source=TEXT.map("idx:{}".format),
).flatmap(lambda data: st.sampled_from([data]) | VALIDATION.map(lambda v: data.model_copy(update={"validation": v}))
          | RESPLIT.map(lambda r: data.model_copy(update={"resplit": r})))  # fmt: skip
TOML_VALUES = st.recursive(
    BOOL | st.integers(-(2**63), 2**63 - 1) | NUMBERS | TEXT, lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
LEAF_TRANSFORMS = build(AlbumentationsSpec, {"args": st.dictionaries(TEXT, TOML_VALUES, max_size=3)}, name=TEXT)
TRANSFORMS = LEAF_TRANSFORMS | build(
    AlbumentationsSpec, {"transforms": st.lists(LEAF_TRANSFORMS, max_size=2).map(tuple)}, name=TEXT
)
AUGMENT = build(
    AugmentSpec,
    {
        "rotate": st.floats(0, 180),
        "translate": BELOW_ONE,
        "shift": st.integers(0, 9),
        "flip": PROBABILITY,
        "erase": PROBABILITY,
        "erase_area": st.tuples(FRACTION, FRACTION).map(lambda pair: tuple(sorted(pair))),
        "albumentations": st.lists(TRANSFORMS, max_size=2).map(tuple),
    },
)
L2 = st.floats(0, 1e3)
FLAT_LAYERS = st.one_of(
    build(
        n.Conv,
        {
            "stride": SIZES,
            "padding": st.sampled_from(["valid", "same"]),
            "groups": COUNTS,
            "activation": ACTIVATIONS,
            "bias": BOOL,
            "l2": L2,
        },
        filters=COUNTS,
        kernel_size=SIZES,
    ),
    build(n.Dense, {"activation": ACTIVATIONS, "bias": BOOL, "l2": L2}, units=COUNTS),
    build(n.MaxPool, {"size": SIZES, "stride": SIZES | st.none()}),
    build(n.AvgPool, {"size": SIZES, "stride": SIZES | st.none()}),
    st.sampled_from([n.GlobalMaxPool(), n.GlobalAvgPool(), n.Flatten(), n.Activate(function="tanh")]),
    build(n.BatchNorm, {"momentum": PROBABILITY, "eps": ABOVE_ZERO, "activation": ACTIVATIONS}),
    build(n.Dropout, rate=BELOW_ONE),
    build(n.SqueezeExcite, {"reduction": COUNTS}),
)
LAYERS = st.recursive(
    FLAT_LAYERS,
    lambda layers: build(
        n.Residual,
        {"shortcut": st.sampled_from(["identity", "auto"]), "stochastic_depth": BELOW_ONE, "activation": ACTIVATIONS},
        body=st.lists(layers, min_size=1, max_size=3).map(tuple),
    ),
    max_leaves=4,
)
MODELS = build(
    families.KernelCnnSpec,
    {"form": st.sampled_from(["plain", "pooled"]), "depth": st.integers(1, 20), "init": INITS},
    kernel_size=COUNTS,
    widths=st.lists(COUNTS, min_size=1, max_size=4).map(tuple),
)
MODELS |= st.integers(1, 4).flatmap(
    lambda n: build(
        families.KernelResnetSpec,
        {
            "depth": st.integers(1, 20) | st.lists(st.integers(1, 20), min_size=n, max_size=n).map(tuple),
            "squeeze_excite": BOOL,
            "stochastic_depth": BELOW_ONE,
            "init": INITS,
        },
        kernel_size=COUNTS | st.lists(COUNTS, min_size=n, max_size=n).map(tuple),
        widths=st.lists(COUNTS, min_size=n, max_size=n).map(tuple),
    )
)
MODELS |= build(families.SequentialSpec, {"init": INITS}, layers=st.lists(LAYERS, min_size=1, max_size=4).map(tuple))


def in_whole_cycles(member):
    """Return a member with whole cycles: with a cyclic schedule it keeps snapshots, otherwise it averages weights."""
    cycles, trainer = getattr(member.schedule, "cycles", None), member.trainer
    changes = {"epochs": trainer.epochs * cycles, "keep": "snapshots"} if cycles else {"swa": 0.25}
    if not cycles and trainer.weight_average is not None:
        return member
    return member.model_copy(update={"trainer": trainer.model_copy(update=changes)})


BETAS = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2)
OPTIMIZERS = st.one_of(
    build(optimizer.AdamSpec, {"lr": ABOVE_ZERO, "betas": BETAS, "eps": ABOVE_ZERO}),
    build(optimizer.AdamWSpec, {"lr": ABOVE_ZERO, "betas": BETAS, "eps": ABOVE_ZERO, "weight_decay": L2}),
    build(optimizer.SgdSpec, {"lr": ABOVE_ZERO, "nesterov": BOOL, "weight_decay": L2}, momentum=st.floats(0.1, 0.9)),
)
WARMUP = {"warmup": BELOW_ONE, "final": PROBABILITY}
SCHEDULES = st.one_of(
    st.just(schedule.ConstantSchedule()),
    build(schedule.ExponentialSchedule, gamma=st.floats(0, 1, exclude_min=True)),
    build(schedule.CosineSchedule, WARMUP),
    build(schedule.CyclicSchedule, {"final": PROBABILITY, "warmup": st.floats(0, 0.1)}, cycles=st.integers(1, 9)),
    build(schedule.LinearSchedule, WARMUP),
)
TRAINERS = build(
    TrainerSpec,
    {
        "epochs": COUNTS,
        "batch_size": COUNTS,
        "full_batch": BOOL,
        "drop_last": BOOL,
        "seed": SEEDS,
        "label_smoothing": BELOW_ONE,
        "weight_average": st.none() | FRACTION,
        "precision": st.sampled_from(["auto", "fp32", "bf16"]),
        "bagging": st.none() | FRACTION | st.just(1.0),
        "cuda_graph": st.booleans(),
    },
)
MEMBERS = build(
    MemberSpec,
    {"augment": AUGMENT, "optimizer": OPTIMIZERS},
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,20}\Z"),
    model=MODELS,
    schedule=SCHEDULES,
    trainer=TRAINERS,
).map(in_whole_cycles)
RECIPES = build(
    Recipe,
    {
        "ensemble": build(
            EnsembleSpec,
            {"vote": st.sampled_from(["majority", "soft"]), "tie": st.sampled_from(["probability", "lowest", "first"])},
        ),
        "reference": st.none()
        | build(
            ReferenceSpec,
            {
                "test_accuracy": PROBABILITY,
                "test_recall": st.dictionaries(st.text(max_size=5), PROBABILITY, max_size=3),
            },
            source=TEXT,
        ),
    },
    name=TEXT.filter(lambda text: text not in (".", "..") and not set("/\\\0") & set(text)),
    description=st.from_regex(r"\A([A-Za-z0-9é×]([ -~]{0,20}[!-~])?)?\Z"),
    data=DATA,
    members=st.lists(MEMBERS, min_size=1, max_size=3, unique_by=lambda member: member.name.casefold()).map(tuple),
)
