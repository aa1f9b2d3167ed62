"""The instruction for each remedy that an error names."""

from itertools import groupby

from fmcli.errors import Action, FmcliError, Remedy, printable

TEXTS: dict[Action, str] = {
    "batch-size": "use a smaller batch with --set trainer.batch_size=N",
    "data-root": "give another folder of datasets with --data-root",
    "evaluate-again": "write the file again with: fmcli evaluate RUN --save-predictions DIR",
    "groups": "give the group of each member in order, for example --groups 3,3,5,5",
    "labels": "give the true classes with --labels FILE",
    "more-trials": "run more trials with: fmcli search --recipe RECIPE --resume --trials N",
    "output": "give another path with --output",
    "overwrite": "use --overwrite to start from scratch",
    "pack": "create a pack with: fmcli ensemble pack {value} --output FILE.safetensors",
    "replace": "use --overwrite to replace it",
    "resume": "use --resume to continue",
    "resume-run": "continue the run with: fmcli train --recipe {value}/recipe.toml --output {value} --resume",
    "seeds": "set the number of seeds with --seeds",
    "set": "for example, use --set {value}",
    "size": "set the number of members with --size",
    "skip-done": "use --skip-done to keep finished runs",
    "soup-method": "use --method uniform, which needs no validation images",
    "start-search": "start a search with: fmcli search --recipe RECIPE",
    "summary": "see the shapes in a network that fits with: fmcli recipe show {value} --summary",
    "train": "train a run with: fmcli train --recipe quick",
    "train-member": "train only this member, in another folder, with --member {value} --set … --output …",
    "unpack": "extract its members with: fmcli ensemble unpack {value} --output DIR",
    "weights": "give one weight per member in order, for example --weights 2,1,1",
}
"""For all other actions, the instruction is to use the option of the same name."""


def describe_remedy(remedy: Remedy) -> str:
    """Return the instruction for a remedy."""
    text = TEXTS.get(remedy.action, f"use --{remedy.action} {{value}}")
    return text.format(value=printable(remedy.value))


def hint_of(error: FmcliError) -> str | None:
    """Return an error's hint followed by the instructions for its remedies, or None if it has neither.

    Alternative values of the same option are joined by "or".
    """
    by_action = groupby(error.remedies, key=lambda remedy: remedy.action)
    texts = [" or ".join(map(describe_remedy, remedies)).replace(" or use ", " or ") for _, remedies in by_action]
    return "; ".join(filter(None, [error.hint, ", or ".join(texts)])) or None
