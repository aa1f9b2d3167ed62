"""The option or command for each remedy that an error names."""

from itertools import groupby

from fmcli.errors import Action, FmcliError, Remedy, printable

TEXTS: dict[Action, str] = {
    "batch-size": "--set trainer.batch_size=N with a smaller N needs less memory",
    "data-root": "--data-root chooses another folder of datasets",
    "device": "--device {value}",
    "evaluate-again": "fmcli evaluate --save-predictions writes the file again",
    "groups": "--groups names the group of each member in order, e.g. --groups 3,3,5,5",
    "jobs": "--jobs {value}",
    "labels": "--labels FILE gives the true classes",
    "more-trials": "fmcli search --resume --trials N runs more trials",
    "output": "--output chooses another path",
    "overwrite": "--overwrite starts from scratch",
    "pack": "fmcli ensemble pack {value} --output FILE.safetensors creates a pack",
    "replace": "--overwrite replaces it",
    "resume": "--resume continues the run",
    "resume-run": "fmcli train --recipe {value}/recipe.toml --output {value} --resume continues the run",
    "seeds": "--seeds N",
    "set": "--set {value}",
    "size": "--size sets the number of members",
    "skip-done": "--skip-done keeps finished runs",
    "soup-method": "--method uniform needs no validation images",
    "split": "--split {value}",
    "start-search": "fmcli search --recipe RECIPE starts a search",
    "summary": "fmcli recipe show {value} --summary shows the shapes in a network that fits",
    "threads": "--threads {value}",
    "tie": "--tie {value}",
    "train": "fmcli train --recipe quick trains a run",
    "train-member": "--member {value} --set … --output … trains only this member, in another folder",
    "unpack": "fmcli ensemble unpack {value} --output DIR extracts its members",
    "vote": "--vote {value}",
    "weights": "--weights takes one number per member in order, e.g. --weights 2,1,1",
}


def describe_remedy(remedy: Remedy) -> str:
    """Return the option or command for a remedy."""
    return TEXTS[remedy.action].format(value=printable(remedy.value))


def hint_of(error: FmcliError) -> str | None:
    """Return an error's hint followed by the option or command for each of its remedies, or None if it has neither.

    Alternative values of the same option are joined by "or".
    """
    by_action = groupby(error.remedies, key=lambda remedy: remedy.action)
    texts = [" or ".join(map(describe_remedy, remedies)) for _, remedies in by_action]
    return "; ".join(filter(None, [error.hint, *texts])) or None
