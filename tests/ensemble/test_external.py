"""Predictions from other tools: which files are read, and which are refused with file, line and reason."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from fmcli.ensemble.external import (
    ExternalPredictions,
    count_missing,
    find_labels_file,
    is_labels_file,
    read_external,
    read_labels,
    to_predictions,
)
from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.errors import CheckpointError, DataError

CLASSES = ("coat", "bag", "shirt")
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]])
LABELS = [0, 2, 1]


@pytest.fixture
def write(tmp_path):
    """Write text, bytes or an array into a file, and return its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            with path.open("wb") as file:
                np.save(file, content, allow_pickle=content.dtype == object)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def csv_of(names=CLASSES, probabilities=PROBABILITIES, labels=None):
    """Return a CSV as pandas writes it, with the true classes in its first column."""
    columns = [*(["label"] if labels is not None else []), *names]
    rows = [[*([labels[index]] if labels is not None else []), *row] for index, row in enumerate(probabilities)]
    return "".join(",".join(map(str, row)) + "\n" for row in [columns, *rows])


def member_of_fmcli(**changes):
    values = {
        "logits": np.zeros((3, 3), dtype=np.float32),
        "labels": np.array(LABELS),
        "class_names": CLASSES,
        "member": "k3",
        "split": "test",
        "data_digest": "d" * 64,
    }
    return Predictions(**{**values, **changes})


def assert_refused(action, *said):
    """Check that the error is one line with the given words."""
    with pytest.raises(DataError) as caught:
        action()
    assert "\n" not in caught.value.message
    for words in said:
        assert words in caught.value.message
    return caught.value


# --- probabilities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", "longdouble"])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_an_array_of_any_kind_of_float_is_read(write, dtype, layout):
    path = write("knn.npy", np.asarray(PROBABILITIES, dtype=dtype, order=layout))
    found = read_external(path)
    assert found.probabilities.dtype == np.float64
    np.testing.assert_allclose(found.probabilities, PROBABILITIES, atol=1e-3)
    assert (found.path, found.class_names, found.labels) == (path, None, None)


@pytest.mark.parametrize(
    "change",
    [str, lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text, lambda text: text.rstrip("\n")],
    ids=["plain", "Windows", "byte order mark", "no final line end"],
)
def test_tables_from_several_programs_are_read(write, change):
    found = read_external(write("knn.csv", change(csv_of(labels=["coat", "shirt", "bag"]))))
    np.testing.assert_allclose(found.probabilities, PROBABILITIES)
    assert (found.class_names, found.labels) == (CLASSES, ("coat", "shirt", "bag"))


@pytest.mark.parametrize("text", ["a,b\n1,0\n0,1\n\n\n", "\na,b\n\n1,0\n  \n0,1\n", "a,b\r\n1,0\r\n0,1\r\n\r\n"])
def test_blank_lines_are_skipped(write, text):
    assert read_external(write("knn.csv", text)).probabilities.tolist() == [[1, 0], [0, 1]]


def test_row_numbers_of_pandas_are_refused_with_a_hint(write):
    error = assert_refused(lambda: read_external(write("knn.csv", ",a,b\n0,1,0\n")), "knn.csv", "column 1 has no name")
    assert "index=False" in error.hint


def test_suffixes_can_be_upper_case(write):
    assert read_external(write("KNN.CSV", csv_of())).class_names == CLASSES
    np.testing.assert_allclose(read_external(write("KNN.NPY", PROBABILITIES)).probabilities, PROBABILITIES)
    assert read_labels(write("TRUTH.NPY", np.array(LABELS))) == ("0", "2", "1")


def test_the_label_can_be_in_any_column(write):
    found = read_external(write("knn.csv", "coat,label,bag\n1,bag,0\n"))
    assert (found.class_names, found.labels) == (("coat", "bag"), ("bag",))
    assert found.probabilities.tolist() == [[1, 0]]


def test_names_can_be_quoted(write):
    found = read_external(write("knn.csv", '"coat, long","bag ""new"""\n1,0\n'))
    assert found.class_names == ("coat, long", 'bag "new"')


def test_probabilities_written_with_few_digits_are_scaled_to_sum_to_1(write):
    found = read_external(write("knn.csv", "a,b,c\n0.333,0.333,0.333\n"))
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-15)


INVALID_ROWS = {
    "NaN": ([np.nan, 1, 0], "their sum is nan"),
    "infinite": ([np.inf, 1, 0], "their sum is inf"),
    "two infinities": ([np.inf, -np.inf, 0], "their sum is nan"),
    "too large": ([1e308, 1e308, 0], "their sum is inf"),
    "negative": ([-0.5, 1.5, 0], "their minimum is -0.5"),
    "logits": ([3, 1, 0.5], "their sum is 4.5"),
    "too little": ([0.3, 0.3, 0.3], "their sum is 0.9"),
}


@pytest.mark.parametrize("kind", INVALID_ROWS)
@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_invalid_probabilities_are_refused_with_the_row_and_a_hint(write, kind, ending):
    row, said = INVALID_ROWS[kind]
    values = np.array([*PROBABILITIES, row])
    path = write(f"knn.{ending}", values if ending == "npy" else csv_of(probabilities=values))
    error = assert_refused(lambda: read_external(path), path.name, "row 3", said)
    assert "predict_proba" in error.hint


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (3, 0), (2, 3, 1)])
def test_an_array_of_another_shape_is_refused(write, shape):
    path = write("knn.npy", np.full(shape, 0.5))
    assert_refused(lambda: read_external(path), "knn.npy", str(shape), "expected (n_samples, n_classes)")


@pytest.mark.parametrize("content", ["", "a,b\n", "label\ncoat\n"], ids=["empty", "header", "labels"])
def test_an_empty_table_is_refused(write, content):
    path = write("knn.csv", content)
    assert_refused(lambda: read_external(path), "knn.csv", "expected (n_samples, n_classes)")


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128", "<U3", "datetime64[s]"])
def test_an_array_of_another_dtype_is_refused(write, dtype):
    path = write("knn.npy", np.zeros((3, 3), dtype=dtype))
    assert_refused(lambda: read_external(path), "knn.npy", "expected a float dtype")


def archive():
    """Return the bytes of an archive of numpy.savez."""
    file = BytesIO()
    np.savez(file, PROBABILITIES)
    return file.getvalue()


def array_bytes():
    file = BytesIO()
    np.save(file, PROBABILITIES)
    return file.getvalue()


BROKEN_ARRAYS = {
    "empty": b"",
    "text": b"0.5,0.25,0.25\n" * 20,
    "a pickle": b"\x80\x04]\x94.",
    "an archive": archive(),
    "a header cut short": array_bytes()[:50],
    "numbers cut short": array_bytes()[:-1],
    "a shape larger than the data": array_bytes().replace(b"(3, 3), }", b"(3e9,3),}").replace(b"3e9", b"999"),
    "a header that is not Python": array_bytes().replace(b"(3, 3)", b"(3, 3("),
}


@pytest.mark.parametrize("kind", BROKEN_ARRAYS)
def test_a_broken_array_is_refused(write, kind):
    path = write("knn.npy", BROKEN_ARRAYS[kind])
    assert_refused(lambda: read_external(path), "knn.npy")
    assert_refused(lambda: read_labels(path), "knn.npy")


def test_python_objects_are_never_unpickled(write):
    path = write("knn.npy", np.array([[0.5, 0.5], [1, None]], dtype=object))
    assert_refused(lambda: read_external(path), "knn.npy", "objects")
    assert_refused(lambda: read_labels(path), "knn.npy", "objects")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n0.5,0.5\n0.5\n", ["line 3", "the number of values must be 2, as in the header; got 1"]),
        ("a,b\n0.5,0.5\n0.2,0.3,0.5\n", ["line 3", "the number of values must be 2, as in the header; got 3"]),
        ("a,b\n0.5,0.5\n,\n", ["line 3", "''"]),
        (",a,b\n0,0.5,0.5\n", ["column 1 has no name"]),
        ("a,,b\n0.5,0,0.5\n", ["column 2 has no name"]),
        ("a,b\n0.5,half\n", ["line 2", "'half'"]),
        ("a,b\n0.5,\n", ["line 2", "''"]),
        ('"a\nx",b\n0.5,0.5\n0.5,half\n', ["line 4", "'half'"]),
        ("a;b\n0.5;0.5\n", ["columns by ';'"]),
        ("a\tb\n0.5\t0.5\n", [r"columns by '\t'"]),
        ("0.5,0.5\n0.25,0.75\n", ["no header"]),
        ("1.0,0.0\n0.25,0.75\n", ["no header"]),
        ("0,0.3,0.7\n0.5,0.25,0.25\n", ["no header"]),
        ("a,a\n0.5,0.5\n", ["2 columns named 'a'"]),
        ("label,label,a\n0,0,1\n", ["2 columns named 'label'"]),
        (b"\xe9,b\n1,0\n", ["UTF-8"]),
        ("a,b\n" + "1" * 200_000 + ",0\n", ["field larger than"]),
    ],
)
def test_a_broken_table_is_refused_with_the_line(write, content, said):
    path = write("knn.csv", content)
    assert_refused(lambda: read_external(path), "knn.csv", *said)


@pytest.mark.parametrize("name", ["missing.csv", "missing.npy", "."])
@pytest.mark.parametrize("read", [read_external, read_labels])
def test_a_missing_file_or_a_folder_is_refused(tmp_path, name, read):
    assert_refused(lambda: read(tmp_path / name), str(tmp_path / name))


def test_text_from_a_file_cannot_control_the_terminal(write):
    path = write("knn.csv", "a,b\n0.5,\x1b[31m\n")
    error = assert_refused(lambda: read_external(path))
    assert "\x1b" not in error.message


# --- true classes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("truth.txt", "coat\nshirt\nbag\n"),
        ("truth.csv", "label\r\ncoat\r\n shirt \r\nbag"),
        ("truth.txt", "0\n2\n1\n"),
        ("truth.txt", "0\n2\n1\n\n \n"),
        ("truth.npy", np.array(LABELS, dtype=np.uint8)),
        ("truth.npy", np.array(LABELS, dtype=">i4")),
    ],
    ids=["names", "column", "numbers", "blank lines", "uint8", "big-endian"],
)
def test_true_classes_are_read_by_name_or_number(write, name, content):
    labels = read_labels(write(name, content))
    predictions = ExternalPredictions(write("knn.npy", PROBABILITIES), PROBABILITIES, class_names=CLASSES)
    assert to_predictions(predictions, name="knn", split="test", labels=labels).labels.tolist() == LABELS


@pytest.mark.parametrize("content", [np.array([0.0, 1.0]), np.array([[0], [1]]), np.array(["coat"]), np.array(1)])
def test_an_array_without_labels_is_refused(write, content):
    path = write("truth.npy", content)
    assert_refused(lambda: read_labels(path), "truth.npy", "labels must be integers")


def test_labels_that_are_not_text_are_refused(write):
    path = write("truth.txt", b"\xff\xfe")
    assert_refused(lambda: read_labels(path), "truth.txt", "UTF-8")


# --- predictions -----------------------------------------------------------------------------------------


def external(probabilities=PROBABILITIES, class_names=None, labels=None):
    return ExternalPredictions(Path("knn.csv"), np.asarray(probabilities), class_names, labels)


def test_the_softmax_of_the_logits_gives_the_probabilities():
    made = to_predictions(external(labels=("0", "2", "1")), name="knn", split="validation")
    assert (made.member, made.split, made.data_digest, made.recipe_digest) == ("knn", "validation", "", "")
    assert (made.class_names, made.labels.tolist()) == (("0", "1", "2"), LABELS)
    assert (made.logits.dtype, made.labels.dtype) == (np.float32, np.int64)
    assert np.isfinite(made.logits).all()
    np.testing.assert_allclose(np.exp(made.logits.astype(float)), PROBABILITIES, atol=1e-7)


def test_columns_are_ordered_like_the_classes_of_the_reference():
    reference = member_of_fmcli()
    shuffled = external(PROBABILITIES[:, [2, 0, 1]], ("shirt", "coat", "bag"), ("coat", "2", "bag"))
    made = to_predictions(shuffled, name="knn", split="test", reference=reference)
    assert made.class_names == CLASSES
    np.testing.assert_allclose(np.exp(made.logits.astype(float)), PROBABILITIES, atol=1e-7)
    assert made.labels.tolist() == LABELS  # the number is the reference's
    assert len(stack_logits([reference, made])) == 2


def test_missing_names_and_labels_are_taken_from_the_reference():
    made = to_predictions(external(), name="knn", split="test", reference=member_of_fmcli())
    assert (made.class_names, made.labels.tolist()) == (CLASSES, LABELS)


def test_class_names_that_differ_from_the_reference_are_refused():
    made = to_predictions(external(class_names=("a", "b", "c")), name="knn", split="test", reference=member_of_fmcli())
    with pytest.raises(CheckpointError, match=r"k3 and knn have different classes: coat, bag, shirt \(3\) and a, b, c"):
        stack_logits([member_of_fmcli(), made])


def test_labels_come_from_the_csv_then_the_file_then_the_reference():
    reference = member_of_fmcli(labels=np.array([1, 1, 1]))
    options = {"name": "knn", "split": "test", "reference": reference}
    own = to_predictions(external(labels=("0", "0", "0")), labels=["2"] * 3, **options)
    assert own.labels.tolist() == [0, 0, 0]
    assert to_predictions(external(), labels=["2"] * 3, **options).labels.tolist() == [2, 2, 2]
    assert to_predictions(external(), **options).labels.tolist() == [1, 1, 1]


def test_a_name_takes_precedence_over_a_number():
    made = to_predictions(external(class_names=("2", "0", "1"), labels=("2", "0", "1")), name="knn", split="test")
    assert made.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("predictions", "labels", "found"),
    [
        ("forest.npy", "test-labels.npy", True),
        ("forest.npy", "test-labels.txt", True),
        ("forest.npy", "validation-labels.npy", False),
        ("forest/test.npy", "forest/test-labels.txt", True),
        ("forest/test.npy", "test-labels.npy", True),
        ("folder/forest.npy", "test-labels.npy", False),
        ("forest.npy", "labels.npy", False),
    ],
)
def test_labels_can_be_in_the_same_folder_or_the_parent_folder(tmp_path, predictions, labels, found):
    (tmp_path / labels).parent.mkdir(exist_ok=True)
    (tmp_path / labels).touch()
    assert find_labels_file(tmp_path / predictions, "test") == (tmp_path / labels if found else None)
    assert is_labels_file(Path(labels)) == (Path(labels).stem != "labels")


@pytest.mark.parametrize(
    ("name", "content", "missing"),
    [
        ("a.csv", "label,coat\ncoat,1\n", 1),
        ("a.CSV", '\n"coat","label"\n', 1),
        ("a.csv", "coat,bag\nlabel,1\n", 3),
        ("a.csv", b"\xff", 3),
        ("a.npy", PROBABILITIES, 4),
        ("missing.csv", None, 3),
    ],
)
def test_missing_labels_weigh_more_than_missing_names(write, tmp_path, name, content, missing):
    path = tmp_path / name if content is None else write(name, content)
    assert count_missing(path, None) == missing
    assert count_missing(path, tmp_path / "test-labels.npy") == (2 if name.endswith(".npy") else 1)


@pytest.mark.parametrize("label", ["hat", "3", "-1", "", "1.0", "Coat"])
def test_an_unknown_label_is_refused_with_the_image_and_the_choices(label):
    given = external(class_names=CLASSES, labels=("coat", label, "bag"))
    error = assert_refused(
        lambda: to_predictions(given, name="knn", split="test"), "knn.csv", f"label {label!r} of image 1"
    )
    assert "coat, bag, shirt" in error.hint


def test_labels_by_name_need_class_names():
    options = {"name": "knn", "split": "test", "labels": ["coat", "shirt", "bag"]}
    error = assert_refused(lambda: to_predictions(external(), **options), "knn.csv", "'coat'")
    assert "a number from 0 to 2" in error.hint
    assert to_predictions(external(), reference=member_of_fmcli(), **options).labels.tolist() == LABELS


@pytest.mark.parametrize("n_labels", [0, 2, 4])
def test_a_wrong_number_of_labels_is_refused(n_labels):
    assert_refused(
        lambda: to_predictions(external(), name="knn", split="test", labels=["0"] * n_labels),
        "knn.csv",
        "3 images",
        f"{n_labels} labels",
    )
    reference = member_of_fmcli(labels=np.zeros(n_labels, dtype=np.int64))
    assert_refused(lambda: to_predictions(external(), name="knn", split="test", reference=reference), "3 images")


def test_a_wrong_number_of_classes_is_refused():
    reference = member_of_fmcli(class_names=("coat", "bag"))
    assert_refused(
        lambda: to_predictions(external(), name="knn", split="test", reference=reference),
        "knn.csv",
        "3 classes",
        "k3 has 2",
    )


def test_probabilities_without_labels_are_refused_with_a_remedy():
    error = assert_refused(lambda: to_predictions(external(), name="knn", split="test"), "knn.csv", "true classes")
    assert [remedy.action for remedy in error.remedies] == ["labels"]
