"""Members: shared tables, own tables and copies."""

import pytest

from fmcli.errors import RecipeError
from fmcli.recipe import (
    EnsembleSpec,
    MemberSpec,
    TrainerSpec,
    dump_recipe,
    families,
    load_recipe,
    optimizer,
    recipe_digest,
    value_at,
)
from fmcli.recipe import layers as n
from fmcli.recipe.augment import AugmentSpec
from tests.recipe.helpers import COPIES, MINIMAL, SAME_CASE, load_text, problems_of


def test_recipe_without_members_has_one():
    [member] = load_text(MINIMAL).members
    assert member.name == "m1"
    assert member.model.kernel_size == 3


def test_defaults_are_filled_in():
    recipe = load_text(MINIMAL)
    assert recipe.ensemble == EnsembleSpec()
    assert recipe.members[0].trainer == TrainerSpec()
    assert recipe.members[0].augment == AugmentSpec()
    assert recipe.members[0].optimizer.name == "adam"
    assert recipe.reference is None


def test_member_table_overrides_key_by_key():
    recipe = load_text(
        MINIMAL
        + """
        [optimizer]
        name = "sgd"
        momentum = 0.9
        lr = 0.5
        [trainer]
        epochs = 7
        batch_size = 32
        [[members]]
        name = "a"
        [[members]]
        name = "b"
        model = { kernel_size = 5 }
        optimizer.lr = 0.25
        trainer.epochs = 9
        augment.flip = 0.5
        """
    )
    a, b = recipe.members
    assert (a.model.kernel_size, a.optimizer.lr, a.trainer.epochs, a.augment.flip) == (3, 0.5, 7, 0)
    assert (b.model.kernel_size, b.optimizer.lr, b.trainer.epochs, b.augment.flip) == (5, 0.25, 9, 0.5)
    assert b.model.widths == a.model.widths
    assert (b.optimizer.name, b.optimizer.momentum, b.trainer.batch_size) == ("sgd", 0.9, 32)


def test_another_family_ignores_the_shared_model():
    recipe = load_text(
        MINIMAL
        + """
        [[members]]
        name = "spelled"
        model = { family = "sequential", layers = [{ type = "flatten" }, { type = "dense", units = 10 }] }
        """
    )
    assert recipe.members[0].model == families.SequentialSpec(layers=(n.Flatten(), n.Dense(units=10)))


def test_another_optimizer_ignores_the_shared_optimizer():
    recipe = load_text(
        MINIMAL
        + """
        [optimizer]
        lr = 0.5
        betas = [0.5, 0.6]
        [[members]]
        name = "same"
        optimizer.name = "adam"
        [[members]]
        name = "other"
        optimizer.name = "sgd"
        """
    )
    same, other = recipe.members
    assert same.optimizer == optimizer.AdamSpec(lr=0.5, betas=(0.5, 0.6))
    assert other.optimizer == optimizer.SgdSpec()


def test_list_of_a_member_replaces_the_shared_list():
    recipe = load_text(MINIMAL + '[[members]]\nname = "wide"\nmodel.widths = [8, 9]\n')
    assert recipe.members[0].model.widths == (8, 9)


def test_name_in_the_recipe_overrides_the_file_name():
    assert load_text(MINIMAL).name == "mine"
    assert load_text('name = "yours"\n' + MINIMAL).name == "yours"


def test_copies_differ_only_in_their_names():
    recipe = load_text(COPIES)
    assert [member.name for member in recipe.members] == ["k3-1", "k3-2", "k3-3", "k5"]
    assert {type(member) for member in recipe.members} == {MemberSpec}
    first, *others, _ = recipe.members
    assert first.trainer.epochs == 7
    for other in others:
        assert other.model_copy(update={"name": "k3-1"}) == first


def test_one_copy_keeps_its_name():
    assert [member.name for member in load_text(COPIES.replace("copies = 3", "copies = 1")).members] == ["k3", "k5"]


def test_copies_are_written_out_as_plain_members_and_read_back(write):
    recipe = load_text(COPIES)
    text = dump_recipe(recipe)
    assert "copies" not in text
    again = load_recipe(write(text))
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)


def test_digest_of_a_copy_equals_the_digest_of_a_plain_member():
    plain = load_text(COPIES.replace("copies = 3", "").replace('"k3"', '"k3-2"')).members[0]
    assert recipe_digest(load_text(COPIES).members[1]) == recipe_digest(plain)


@pytest.mark.parametrize(
    ("override", "problems"),
    [
        ("members.k3.copies=0", {"members.k3.copies: got 0; expected a number above 0"}),
        ("members.k3.copies=10000000000", {"members.k3.copies: got 10000000000; expected a number of at most 1000"}),
        ("members.k3.copies=2.5", {"members.k3.copies: got 2.5; expected a whole number"}),
        ("members.k3.copies=true", {"members.k3.copies: got true; expected a whole number"}),
        ("members.k3.copy=2", {"members.k3.copy: unknown key; did you mean 'copies'?"}),
        ("members.k5.name=k3-2", {f"members: 2 members are named 'k3-2' {SAME_CASE}"}),
        ("members.k5.name=K3-2", {f"members: 2 members are named 'k3-2' {SAME_CASE}"}),
        ("members.k3.model.kernel_sise=3", {"members.k3.model.kernel_sise: unknown key; did you mean 'kernel_size'?"}),
        # Reported once, not for each copy.
        ("members.k3.schedule={name='cyclic', cycles=2}",
         {"members.k3.trainer.epochs: got 7; expected a multiple of schedule.cycles = 2"}),
    ],
)  # fmt: skip
def test_problems_of_copies(override, problems):
    assert problems_of(COPIES, override) == problems


def test_impossible_network_of_copies_is_reported_once():
    [problem] = problems_of(COPIES, "members.k3.model.form=plain", "members.k3.model.kernel_size=30")
    assert problem.startswith("members.k3.model.layers[0]: a 30×30 kernel")


def test_copies_with_too_long_names_are_refused():
    name = "k" * 62
    assert load_text(COPIES.replace("k3", name), f"members.{name}.copies=9").members[8].name == f"{name}-9"
    [problem] = problems_of(COPIES.replace("k3", name), f"members.{name}.copies=10")
    assert (
        problem
        == f"members.{name}.copies: got 10; the name of the last copy, '{name}-10', is longer than 64 characters"
    )


def test_override_changes_all_copies_but_not_a_single_one():
    recipe = load_text(COPIES, "members.k3.optimizer.lr=9")
    assert [member.optimizer.lr for member in recipe.members] == [9.0, 9.0, 9.0, 1e-3]
    with pytest.raises(RecipeError, match=r"no such member; did you mean 'k3'"):
        load_text(COPIES, "members.k3-2.optimizer.lr=9")


def test_value_of_copies_is_the_value_of_the_first():
    recipe = load_text(COPIES)
    assert value_at(recipe, "members.k3.trainer.epochs") == value_at(recipe, "members.k3-2.trainer.epochs") == 7
    assert value_at(recipe, "members.k5.trainer.epochs") == 10


def test_member_named_like_a_first_copy_does_not_hide_another_member():
    recipe = load_text(MINIMAL + '[[members]]\nname = "k-1"\ntrainer.epochs = 1\n[[members]]\nname = "k"\n')
    assert value_at(recipe, "members.k.trainer.epochs") == 10
