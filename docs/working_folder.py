"""Write the files that the commands of a page use: a trained run, photos, drawn pets, predictions of other tools."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fmcli.choices import BUILT_IN_SOURCES

CLASS_NAMES = BUILT_IN_SOURCES["fashion-mnist"].class_names
N_PETS = 100  # images per class
PET_SIDE = 32
N_FOREST, N_SVM = 6000, 3000  # training images of the two classifiers


@dataclass(frozen=True, slots=True)
class Clothes:
    """Images, uint8 (N, 28, 28), and labels, (N,), of Fashion-MNIST or of drawn images in its place."""

    train: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    test: tuple[NDArray[np.uint8], NDArray[np.uint8]]

    def first(self, n_train: int, n_test: int) -> "Clothes":
        """Return the first images of each split."""
        train, test = ((images[:n], labels[:n]) for (images, labels), n in ((self.train, n_train), (self.test, n_test)))
        return Clothes(train, test)


def read_clothes() -> Clothes:
    """Return the images of Fashion-MNIST; 1,000 drawn images per split if it is missing."""
    from fmcli.data.sources.fashion_mnist import find_fashion_mnist, verify_fashion_mnist

    folder = find_fashion_mnist(None)
    if folder is None:
        return Clothes(_draw_clothes(1000, seed=1), _draw_clothes(1000, seed=2))
    arrays = verify_fashion_mnist(folder)
    return Clothes(
        (arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]),
        (arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]),
    )


def prepare_folder(folder: Path, run: Path | None, clothes: Clothes | None = None) -> None:
    """Write the files that every page may use, unless the folder exists.

    Args:
        folder: Folder to create.
        run: A trained run of the recipe quick, to copy to `checkpoints/quick`; None leaves it out.
        clothes: Images for photos and for the predictions of other tools. Default: Fashion-MNIST.
    """
    if folder.exists():
        return
    clothes = clothes or read_clothes()
    if run is not None:
        shutil.copytree(run, folder / "checkpoints" / "quick")
    (folder / "photos").mkdir(parents=True)
    images, _ = clothes.test
    for index in range(6):
        _photo(images[index], 120).save(folder / "photos" / f"{index + 1}.png")
    _photo(images[7], 480).save(folder / "photo.jpg")
    np.save(folder / "scans.npy", images[8:12])
    draw_pets(folder / "pets")
    write_predictions(folder, clothes)


def draw_pets(folder: Path) -> None:
    """Draw colour images of birds, cats and dogs, in one subfolder per class."""
    generator = np.random.default_rng(0)
    for name in ("bird", "cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(N_PETS):
            _draw_pet(name, generator).save(folder / name / f"{number + 1:03}.png")


def write_predictions(folder: Path, clothes: Clothes) -> None:
    """Write probabilities for the test images: `forest.npy` of a random forest, and `svm.csv` of a linear SVM."""
    from scipy.special import softmax
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import SGDClassifier

    (images, labels), (test, test_labels) = (
        (_flat(images), labels) for images, labels in (clothes.train, clothes.test)
    )
    forest = RandomForestClassifier(30, random_state=0).fit(images[:N_FOREST], labels[:N_FOREST])
    np.save(folder / "forest.npy", forest.predict_proba(test).astype(np.float32))
    svm = SGDClassifier(max_iter=20, tol=None, random_state=0).fit(images[:N_SVM], labels[:N_SVM])
    probabilities = softmax(svm.decision_function(test), axis=1)
    with (folder / "svm.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*CLASS_NAMES, "label"])
        for row, label in zip(probabilities, test_labels, strict=True):
            rows.writerow([*(f"{value:.4f}" for value in row), CLASS_NAMES[label]])


def _flat(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _photo(image: NDArray[np.uint8], side: int) -> Image.Image:
    """Return a piece of clothing as dark on white, as in a photo of a shop."""
    return Image.fromarray(255 - image).resize((side, side), Image.Resampling.BICUBIC)


def _draw_pet(name: str, generator: np.random.Generator) -> Image.Image:
    """Draw a head: a bird has a beak, a cat has pointed ears, a dog has hanging ears."""
    background, fur = (
        tuple(int(level) for level in generator.integers(*range_, 3)) for range_ in ((120, 256), (0, 150))
    )
    scale = 4  # draw larger and scale down for smooth edges
    image = Image.new("RGB", (PET_SIDE * scale,) * 2, background)
    draw = ImageDraw.Draw(image)
    x, y = (64 + generator.integers(-16, 17, 2)).tolist()
    r = int(generator.integers(24, 37))
    draw.ellipse((x - r, y - r, x + r, y + r), fur)
    match name:
        case "bird":
            draw.polygon([(x + r - 4, y - r // 3), (x + r - 4, y + r // 3), (x + 2 * r, y)], (240, 170, 40))
        case "cat":
            for side in (-1, 1):
                draw.polygon([(x + side * r, y), (x + side * r // 5, y - r), (x + side * r, y - 3 * r // 2)], fur)
        case "dog":
            for left, right in ((x - r - r // 2, x - r // 2), (x + r // 2, x + r + r // 2)):
                draw.ellipse((left, y - r // 2, right, y + r), fur)
    for side in (-1, 1):
        eye = x + side * r // 3
        draw.ellipse((eye - 3, y - r // 4 - 3, eye + 3, y - r // 4 + 3), (255, 255, 255))
    small = image.resize((PET_SIDE, PET_SIDE), Image.Resampling.BOX)
    noise = generator.normal(0, 12, (PET_SIDE, PET_SIDE, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def _draw_clothes(n: int, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return noisy images, uint8 (N, 28, 28), and labels, (N,). The label is the length of a bright bar."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) % len(CLASS_NAMES)).astype(np.uint8)
    images = generator.integers(0, 60, (n, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[8:20, 4 : 6 + 2 * label] += 150
    return images.astype(np.uint8), labels
