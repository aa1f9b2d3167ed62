"""Augmentation compared with OpenCV, albumentations and slow loops; random draws; worker processes."""

import math

import albumentations
import cv2
import numpy as np
import pytest
import torch

from fmcli.data.albumentations import AlbumentationsAugment
from fmcli.data.augment import (
    affine,
    augment,
    erase,
    random_affine,
    random_erase,
    random_flip,
    random_shift,
    shift,
)
from fmcli.data.image_set import ImageSet
from fmcli.data.loader import DeviceLoader
from fmcli.errors import RecipeError
from fmcli.recipe.augment import AlbumentationsSpec, AugmentSpec

SHAPES = [(1, 28, 28), (3, 20, 36), (2, 33, 17)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(shape, n_images=4, seed=0):
    return torch.randint(0, 256, (n_images, *shape), generator=seeded(seed), dtype=torch.uint8)


def smooth_images(shape, n_images=4, seed=0):
    """Return random images without sharp edges, 0 to 255, so that small fractions of a pixel change little."""
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n_images):
        rough = rng.random((height, width, channels)).astype(np.float32)
        blurred = cv2.GaussianBlur(rough, (0, 0), 2.0).reshape(height, width, channels)
        images.append((blurred - blurred.min()) / (blurred.max() - blurred.min()) * 255)
    return np.stack(images)


def to_tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)  # (N, H, W, C) to (N, C, H, W)


def move(images, degrees, right, down):
    """Apply `affine` to (N, H, W, C) images."""
    n_images = len(images)
    arguments = (torch.full((n_images,), float(value)) for value in (degrees, right, down))
    return affine(to_tensor(images), *arguments).permute(0, 2, 3, 1).numpy()


# --- affine ----------------------------------------------------------------------------------------------

MOVES = [(0, 0, 0), (0, 3, -2), (0, 2.5, 0.25), (10, 0, 0), (-20, 0, 0), (20, 3, -4), (-33.3, -2.5, 1.75), (170, 1, 2)]
moves = pytest.mark.parametrize(("degrees", "right", "down"), MOVES)


@shapes
@moves
def test_affine_equals_a_slow_loop(shape, degrees, right, down):
    """Reference: for each pixel, undo shift and rotation, and interpolate the four neighbours; zero outside."""
    images = smooth_images(shape, n_images=1)
    _, height, width, _ = images.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    padded = np.pad(images[0].astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    expected = np.zeros(images[0].shape)
    for y in range(height):
        for x in range(width):
            # Row numbers grow downwards: counter-clockwise rotation maps (x, y) to (x cos + y sin, -x sin + y cos).
            from_x, from_y = x - right - (width - 1) / 2, y - down - (height - 1) / 2
            source_x = cos * from_x - sin * from_y + (width - 1) / 2 + 1  # 1 for the border of zeros
            source_y = sin * from_x + cos * from_y + (height - 1) / 2 + 1
            left, top = math.floor(source_x), math.floor(source_y)
            if 0 <= left <= width and 0 <= top <= height:
                a, b = source_x - left, source_y - top
                above = (1 - a) * padded[top, left] + a * padded[top, left + 1]
                below = (1 - a) * padded[top + 1, left] + a * padded[top + 1, left + 1]
                expected[y, x] = (1 - b) * above + b * below
    # float32 positions are exact to 1e-6 of a side, and neighbours differ by at most 255 (at the border).
    np.testing.assert_allclose(move(images, degrees, right, down)[0], expected, atol=0.02)


@shapes
@moves
def test_affine_equals_opencv(shape, degrees, right, down):
    images = smooth_images(shape)
    _, height, width, channels = images.shape
    # OpenCV also counts angles counter-clockwise on screen. The centre of the image is between the middle pixels.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (right, down)
    expected = [
        cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR).reshape(height, width, channels)
        for image in images
    ]
    difference = np.abs(move(images, degrees, right, down) - expected)
    # OpenCV may round positions to 1/32 of a pixel, an error of at most 1/64 along each axis. Neighbours
    # differ by up to 70 inside these images, but by up to 255 at the border, where the zeros begin.
    inside = interior(images, matrix)
    assert inside.mean() > 0.5
    assert difference[:, inside].max() < 2 * 70 / 64
    assert difference.max() < 2 * 255 / 64


@shapes
@pytest.mark.parametrize(
    ("degrees", "right", "down"), [move for move in MOVES if move[1:] == tuple(map(int, move[1:]))]
)
def test_affine_equals_albumentations(shape, degrees, right, down):  # albumentations shifts by whole pixels
    images = smooth_images(shape).round().astype(np.uint8)
    pipeline = albumentations.Affine(
        rotate=(degrees, degrees),
        translate_px={"x": (right, right), "y": (down, down)},
        interpolation=cv2.INTER_LINEAR,
        border_mode=cv2.BORDER_CONSTANT,
        fill=0,
        p=1.0,
    )
    expected = np.stack([pipeline(image=image)["image"].reshape(image.shape) for image in images])
    difference = np.abs(move(images.astype(np.float32), degrees, right, down) - expected)
    _, height, width, _ = images.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (right, down)
    # The tolerance for OpenCV, which albumentations uses, and half a grey level for rounding to uint8.
    assert difference[:, interior(images, matrix)].max() < 2 * 70 / 64 + 0.5
    assert difference.max() < 2 * 255 / 64 + 0.5


def interior(images, matrix):
    """Return which pixels of the result come from inside the image, at least one pixel from the border."""
    _, height, width, _ = images.shape
    core = np.zeros((height, width), dtype=np.uint8)
    core[2:-2, 2:-2] = 1
    return cv2.warpAffine(core, matrix, (width, height), flags=cv2.INTER_NEAREST).astype(bool)


@shapes
def test_affine_without_shift_and_rotation_is_the_identity(shape):
    images = smooth_images(shape)
    # Positions are computed in float32, exact to 1e-6 of a side.
    np.testing.assert_allclose(move(images, 0, 0, 0), images, atol=2e-3)


def test_affine_shifts_each_image_by_different_numbers():
    images = smooth_images((1, 28, 28), n_images=3)
    degrees, right, down = torch.tensor([[0.0, 15, -30], [3, 0, 1.5], [0, -2, 2]])
    together = affine(to_tensor(images), degrees, right, down)
    for index in range(3):
        alone = affine(to_tensor(images)[index : index + 1], *(x[index : index + 1] for x in (degrees, right, down)))
        torch.testing.assert_close(together[index : index + 1], alone)


def test_a_quarter_turn_is_counter_clockwise():
    images = random_images((1, 9, 9)).float()
    turned = affine(images, torch.full((4,), 90.0), torch.zeros(4), torch.zeros(4))
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), atol=0.01, rtol=0)


def test_affine_by_whole_pixels_equals_shift():
    images = random_images((2, 9, 12)).float()
    right, down = torch.tensor([0, 3, -2, 20]), torch.tensor([1, 0, -8, 1])
    moved = affine(images, torch.zeros(4), right.float(), down.float())
    torch.testing.assert_close(moved, shift(images, right, down), atol=0.01, rtol=0)


@shapes
def test_random_affine_draws_within_bounds(shape):
    # The value of each pixel is its coordinates.
    _, height, width = shape
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    n_images = 300
    coordinates = torch.stack([x, y, torch.ones_like(x)]).float().expand(n_images, -1, -1, -1)
    moved = random_affine(coordinates, rotate=20.0, translate=0.1, generator=seeded())
    degrees, right, down = [], [], []
    for image in moved.double():
        inside = (image[2] > 0.999).flatten()
        target = torch.stack([x.flatten(), y.flatten(), torch.ones(height * width)])[:, inside].double()
        source = image[:2].flatten(1)[:, inside]
        solved = torch.linalg.lstsq(target.T, source.T).solution.T  # source = rotation @ (target - move)
        rotation, offset = solved[:, :2], solved[:, 2]
        degrees.append(math.degrees(math.atan2(rotation[1, 0], rotation[0, 0])))
        move_x, move_y = (-torch.linalg.solve(rotation, offset)).tolist()
        right.append(move_x)
        down.append(move_y)
    for drawn, bound in ((degrees, 20), (right, 0.1 * width), (down, 0.1 * height)):
        assert max(np.abs(drawn)) <= bound * 1.001
        assert min(drawn) < -0.95 * bound  # 300 draws come near both ends
        assert max(drawn) > 0.95 * bound
        assert abs(np.mean(drawn)) < 0.15 * bound  # 4.5 standard errors of a uniform draw
    for one, other in ((degrees, right), (degrees, down), (right, down)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.25  # over four standard errors


# --- shift, flip, erase ----------------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shift_equals_a_slow_loop(shape, dtype):
    images = random_images(shape, n_images=6).to(dtype)
    right, down = torch.tensor([0, 1, -3, 5, 100, -100]), torch.tensor([0, -2, 4, 0, 0, 3])
    expected = np.zeros_like(images.numpy())
    _, height, width = shape
    for n in range(6):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y - int(down[n]), x - int(right[n])
                if 0 <= from_y < height and 0 <= from_x < width:
                    expected[n, :, y, x] = images[n, :, from_y, from_x]
    moved = shift(images, right, down)
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved.numpy(), expected)


@shapes
def test_shift_accepts_channels_last_images(shape):
    images = random_images(shape)
    right, down = torch.tensor([1, 0, -2, 3]), torch.tensor([0, 1, 2, -3])
    scattered = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(shift(scattered, right, down), shift(images, right, down))


def test_random_shift_draws_every_step_in_both_directions():
    image = torch.zeros(1, 1, 7, 7, dtype=torch.uint8)
    image[0, 0, 3, 3] = 1
    moved = random_shift(image.expand(500, -1, -1, -1), pixels=2, generator=seeded())
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    steps = set(zip((rows - 3).tolist(), (columns - 3).tolist(), strict=True))
    assert steps == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


@shapes
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_random_flip_mirrors_whole_images_left_to_right(shape, probability):
    images = random_images(shape, n_images=400)
    flipped = random_flip(images, probability=probability, generator=seeded())
    same = (flipped == images).flatten(1).all(dim=1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert abs(mirrored.double().mean() - probability) <= 0.1 * (probability == 0.5)  # four standard errors


def test_erase_equals_a_slow_loop():
    images, noise = random_images((2, 9, 12), n_images=5), random_images((2, 9, 12), n_images=5, seed=1)
    top, left, tall, wide = torch.tensor([[0.0, 2, 8, 0, 3], [0, 3, 11, 0, 0], [0, 4, 1, 9, 1], [5, 2, 1, 12, 12]])
    expected = images.numpy().copy()
    for n in range(5):
        for y in range(int(top[n]), int(top[n] + tall[n])):
            for x in range(int(left[n]), int(left[n] + wide[n])):
                expected[n, :, y, x] = noise[n, :, y, x]
    np.testing.assert_array_equal(erase(images, top, left, tall, wide, noise).numpy(), expected)


@shapes
def test_random_erase_fills_one_rectangle_within_bounds(shape):
    _, height, width = shape
    # No pixel of the noise is 256, so erased pixels can be found.
    images = torch.full((300, *shape), 256.0)
    area = (0.05, 0.25)
    erased = random_erase(images, probability=1.0, area=area, generator=seeded()) != 256
    assert (erased == erased[:, :1]).all()  # all channels are the same
    talls, wides = set(), set()
    for mask in erased[:, 0]:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        tall, wide = int(rows.sum()), int(columns.sum())
        assert (mask == rows[:, None] & columns[None, :]).all()
        assert int(rows.nonzero().max() - rows.nonzero().min()) == tall - 1  # the rows are adjacent
        assert int(columns.nonzero().max() - columns.nonzero().min()) == wide - 1
        # Each side is rounded to whole pixels and cut at the border, which only makes it smaller.
        assert tall * wide <= area[1] * height * width + (tall + wide) / 2
        assert tall * wide >= area[0] * height * width - (tall + wide) / 2 - 1 or tall == height or wide == width
        talls.add(tall)
        wides.add(wide)
    assert len(talls) > 5
    assert len(wides) > 5
    assert erased.flatten(1).any(dim=1).all()
    assert erased[:, 0].any(dim=0).all()  # every position is reached, the corners too


def test_random_erase_does_not_change_other_images():
    images = torch.full((400, 1, 12, 12), 256.0)
    erased = random_erase(images, probability=0.25, area=(0.1, 0.3), generator=seeded()) != 256
    assert abs(erased.flatten(1).any(dim=1).double().mean() - 0.25) < 0.09  # four standard errors
    untouched = random_erase(images, probability=0.0, area=(0.1, 0.3), generator=seeded())
    torch.testing.assert_close(untouched, images)


def test_random_erase_fills_with_noise_of_all_pixel_values():
    images = random_images((3, 32, 32), n_images=20)
    erased = random_erase(images, probability=1.0, area=(0.5, 0.6), generator=seeded(1))
    assert erased.dtype == torch.uint8
    changed = erased[erased != images].double()
    assert (changed.min(), changed.max()) == (0, 255)
    assert abs(changed.mean() - 127.5) < 5


# --- random draws ----------------------------------------------------------------------------------------

RANDOM = {
    "affine": lambda images, generator: random_affine(images.float(), rotate=20, translate=0.1, generator=generator),
    "shift": lambda images, generator: random_shift(images, pixels=3, generator=generator),
    "flip": lambda images, generator: random_flip(images, probability=0.5, generator=generator),
    "erase": lambda images, generator: random_erase(images, probability=0.9, area=(0.1, 0.3), generator=generator),
    "all": lambda images, generator: augment(
        images, AugmentSpec(rotate=10.0, translate=0.1, shift=2, flip=0.5, erase=0.5), generator
    ),
}
every_function = pytest.mark.parametrize("name", sorted(RANDOM))


@every_function
@shapes
def test_the_same_seed_gives_the_same_images_and_another_seed_does_not(name, shape):
    images = random_images(shape, n_images=16)
    before = images.clone()
    first = RANDOM[name](images, seeded(1))
    torch.testing.assert_close(RANDOM[name](images, seeded(1)), first, rtol=0, atol=0)
    assert not torch.equal(RANDOM[name](images, seeded(2)), first)
    torch.testing.assert_close(images, before)  # the input is not changed
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 255


@every_function
def test_every_image_is_changed_differently_in_every_call(name):
    images = random_images((1, 20, 20), n_images=1).expand(20, -1, -1, -1)
    generator = seeded()
    first, second = RANDOM[name](images, generator), RANDOM[name](images, generator)
    assert len({image.numpy().tobytes() for image in first}) > 1
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("spec", "function", "arguments"),
    [
        ({"flip": 0.5}, random_flip, {"probability": 0.5}),
        ({"shift": 1}, random_shift, {"pixels": 1}),
        ({"rotate": 10.0}, random_affine, {"rotate": 10.0, "translate": 0.0}),
        ({"translate": 0.1}, random_affine, {"rotate": 0.0, "translate": 0.1}),
        ({"erase": 0.5}, random_erase, {"probability": 0.5, "area": (0.02, 0.33)}),
        ({"erase": 0.5, "erase_area": (0.4, 0.5)}, random_erase, {"probability": 0.5, "area": (0.4, 0.5)}),
    ],
)
def test_each_key_of_augment_calls_one_function(spec, function, arguments):
    images = random_images((2, 12, 10), n_images=8)
    floats = images.float() if function is random_affine else images
    augmented = augment(images, AugmentSpec.model_validate(spec), seeded())
    torch.testing.assert_close(augmented, function(floats, **arguments, generator=seeded()), rtol=0, atol=0)
    assert not torch.equal(augmented, floats)


def test_an_empty_recipe_changes_nothing_and_draws_nothing():
    images, generator = random_images((1, 8, 8)), seeded()
    state = generator.get_state()
    assert augment(images, AugmentSpec(), generator) is images
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (AugmentSpec(shift=2, flip=0.5, erase=0.5), torch.uint8),
        (AugmentSpec(rotate=5.0), torch.float32),
        (AugmentSpec(translate=0.1), torch.float32),
    ],
)
def test_pixels_stay_uint8_unless_they_are_interpolated(spec, dtype):
    assert augment(random_images((1, 8, 8)), spec, seeded()).dtype == dtype


# --- albumentations --------------------------------------------------------------------------------------


def random_host_images(shape, n_images=8, seed=0):
    return np.ascontiguousarray(random_images(shape, n_images, seed).permute(0, 2, 3, 1).numpy())


def pipeline(*specs, shape=(1, 12, 12)):
    return AlbumentationsAugment([AlbumentationsSpec.model_validate(spec) for spec in specs], shape)


BLUR = {"name": "Blur", "args": {"p": 1.0}}
FLIP = {"name": "HorizontalFlip", "args": {"p": 0.5}}
ELASTIC = {"name": "ElasticTransform", "args": {"p": 1.0, "alpha": 20.0, "sigma": 3.0}}
ONE_OF = {"name": "OneOf", "args": {"p": 0.9}, "transforms": [ELASTIC, {"name": "GridDistortion", "args": {"p": 1.0}}]}


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 10, 14)], ids=str)
@pytest.mark.parametrize("specs", [(FLIP,), (ELASTIC,), (ONE_OF,), (FLIP, ONE_OF)])
def test_a_pipeline_gives_the_same_images_for_the_same_seed(shape, specs):
    change, images = pipeline(*specs, shape=shape), random_host_images(shape)
    before = images.copy()
    first = change(images, 5)
    assert (first.shape, first.dtype) == (images.shape, np.uint8)
    change(images, 6)  # the call in between has no effect
    np.testing.assert_array_equal(change(images, 5), first)
    np.testing.assert_array_equal(pipeline(*specs, shape=shape)(images, 5), first)
    assert not np.array_equal(change(images, 6), first)
    np.testing.assert_array_equal(images, before)


def test_images_of_a_batch_are_changed_differently():
    images = np.repeat(random_host_images((1, 12, 12), n_images=1), 10, axis=0)
    changed = pipeline(ELASTIC)(images, 0)
    assert len({image.tobytes() for image in changed}) == 10


def test_transforms_of_one_pipeline_draw_independently():
    change = pipeline(FLIP, {"name": "VerticalFlip", "args": {"p": 0.5}})
    image = random_host_images((1, 12, 12), n_images=1)[0]
    variants = {image[::down, ::right].tobytes(): 0 for down in (1, -1) for right in (1, -1)}
    for seed in range(20):
        for changed in change(np.repeat(image[None], 10, axis=0), seed):
            variants[changed.tobytes()] += 1
    assert len(variants) == 4
    assert min(variants.values()) > 25  # 50 each on average, standard deviation 6


def test_a_pipeline_equals_the_same_pipeline_in_albumentations():
    rotate = {"name": "Affine", "args": {"rotate": [20, 20], "p": 1.0}}
    images = random_host_images((3, 12, 12))
    expected = albumentations.Affine(rotate=(20, 20), p=1.0)
    np.testing.assert_array_equal(
        pipeline(rotate, shape=(3, 12, 12))(images, 0), [expected(image=image)["image"] for image in images]
    )


def test_transforms_are_nested_to_any_depth():
    inner = {"name": "OneOf", "args": {"p": 1.0}, "transforms": [{"name": "InvertImg", "args": {"p": 1.0}}]}
    outer = {"name": "Sequential", "args": {"p": 1.0}, "transforms": [inner]}
    images = random_host_images((1, 12, 12))
    np.testing.assert_array_equal(pipeline(outer)(images, 0), 255 - images)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([{"name": "ElasticTransfrom"}], ["augment.albumentations[0].name", "did you mean 'ElasticTransform'?"]),
        ([BLUR, {"name": "os"}], ["augment.albumentations[1].name", "'os'"]),
        ([{"name": "__builtins__"}], ["augment.albumentations[0].name"]),
        ([{"name": "Blur", "args": {"blur": 3}}], ["augment.albumentations[0].args", "blur"]),
        ([{"name": "Blur", "args": {"p": 1.5}}], ["augment.albumentations[0].args", "p"]),
        ([{"name": "OneOf", "args": {"prob": 1.0}, "transforms": [BLUR]}], ["augment.albumentations[0].args", "prob"]),
        (
            [{"name": "OneOf", "args": {}, "transforms": [BLUR, {"name": "Blurr"}]}],
            ["augment.albumentations[0].transforms[1].name", "did you mean 'Blur'?"],
        ),
        (
            [{"name": "Blurr"}, {"name": "Fllip"}],
            ["albumentations[0]", "albumentations[1]"],
        ),  # all problems in one error
        ([{**BLUR, "transforms": [FLIP]}], ["augment.albumentations[0].transforms", "Blur"]),
        ([{"name": "OneOf", "args": {"transforms": ["Blur"]}}], ["augment.albumentations[0].transforms", "OneOf"]),
        ([{**ONE_OF, "transforms": [{**BLUR, "args": {"p": 0.0}}]}], ["augment.albumentations[0].args", "zero"]),
        ([{"name": "BasicTransform"}], ["augment.albumentations[0].args"]),  # an abstract base class
    ],
)
def test_a_pipeline_that_cannot_be_built_is_refused_with_its_path(specs, said):
    with pytest.raises(RecipeError) as caught:
        pipeline(*specs)
    for words in said:
        assert words in str(caught.value)


def test_each_problem_inside_a_transform_is_reported_once():
    with pytest.raises(RecipeError) as caught:
        pipeline({"name": "OneOf", "args": {}, "transforms": [{"name": "Blurr"}, {"name": "Blur", "args": {"x": 1}}]})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "Resize", "args": {"height": 6, "width": 6}},
        {"name": "Resize", "args": {"height": 6, "width": 6, "p": 0.5}},  # sometimes
        {"name": "Transpose", "args": {"p": 1.0}},  # the image is not square
        {"name": "ToFloat", "args": {"p": 1.0}},
        {"name": "RandomCrop", "args": {"height": 40, "width": 40}},  # larger than the image
    ],
)
def test_a_pipeline_that_changes_shape_or_dtype_is_refused(spec):
    with pytest.raises(RecipeError, match=r"augment\.albumentations"):
        pipeline(spec, shape=(1, 12, 10))


# --- the loader ------------------------------------------------------------------------------------------


def image_set(n_images=23):
    """Return images filled with their number, so that any pixel identifies the image."""
    numbers = np.arange(n_images)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (n_images, 1, 6, 6)).copy()
    images[:, :, 0, 0] += 100  # and a mark in the corner
    return ImageSet(images, numbers % 3, ("a", "b", "c"))


def order_of(batches):
    return [int(image[0, 3, 3]) for images, _ in batches for image in images]


def loader_of(images, **arguments):
    return DeviceLoader(images, device=torch.device("cpu"), **arguments)


def test_batches_are_in_the_original_order():
    images = image_set()
    batches = list(loader_of(images, batch_size=10).batches())
    assert [len(batch) for batch in batches] == [10, 10, 3]
    np.testing.assert_array_equal(torch.cat(batches).numpy(), images.images)


@pytest.mark.parametrize("batch_size", [1, 10, 23, 1000])
def test_an_epoch_has_every_image_with_its_label_once_in_a_new_order(batch_size):
    images = image_set()
    loader, generator = loader_of(images, batch_size=batch_size), seeded()
    epochs = [list(loader.epoch(generator)) for _ in range(2)]
    for batches in epochs:
        assert len(batches) == len(loader)
        assert sorted(order_of(batches)) == list(range(23))
        assert torch.cat([labels for _, labels in batches]).tolist() == [k % 3 for k in order_of(batches)]
    assert order_of(epochs[0]) != order_of(epochs[1])
    again = seeded()
    assert [order_of(loader.epoch(again)) for _ in range(2)] == [order_of(batches) for batches in epochs]


@pytest.mark.parametrize(("batch_size", "sizes"), [(10, [10, 10]), (23, [23]), (1000, [23])])
def test_a_smaller_last_batch_can_be_skipped(batch_size, sizes):
    loader = loader_of(image_set(), batch_size=batch_size, drop_last=True)
    batches = list(loader.epoch(seeded()))
    assert [len(images) for images, _ in batches] == sizes
    assert len(loader) == len(sizes)
    assert len(set(order_of(batches))) == sum(sizes)


def test_each_epoch_skips_different_images():
    loader, generator = loader_of(image_set(), batch_size=10, drop_last=True), seeded()
    left_out = [set(range(23)) - set(order_of(loader.epoch(generator))) for _ in range(3)]
    assert len({frozenset(numbers) for numbers in left_out}) > 1


def test_worker_processes_give_the_same_images_as_the_pipeline():
    images = image_set()
    change = pipeline(FLIP, {"name": "VerticalFlip", "args": {"p": 0.5}}, shape=(1, 6, 6))
    loader, plain = loader_of(images, batch_size=4, transform=change), loader_of(images, batch_size=4)
    generator = seeded()
    epochs = []
    for seed in range(3):
        generator.manual_seed(seed)
        batches = list(loader.epoch(generator))
        # The same draws by hand: the order, then a seed for each batch.
        by_hand = seeded(seed)
        expected = list(plain.epoch(by_hand))
        seeds = torch.randint(2**31, (len(loader),), generator=by_hand).tolist()
        for (got, labels), (untouched, expected_labels), batch_seed in zip(batches, expected, seeds, strict=True):
            wanted = change(untouched.permute(0, 2, 3, 1).numpy(), batch_seed)
            assert got.dtype == torch.uint8
            np.testing.assert_array_equal(got.permute(0, 2, 3, 1).numpy(), wanted)
            assert torch.equal(labels, expected_labels)
        epochs.append(order_of(batches))
        assert sorted(epochs[-1]) == list(range(23))
    assert len({tuple(order) for order in epochs}) == 3
    # An epoch that is stopped early does not change the next epoch.
    assert next(iter(loader.epoch(seeded(9))))[0].shape == (4, 1, 6, 6)
    assert order_of(loader.epoch(seeded(0))) == epochs[0]
