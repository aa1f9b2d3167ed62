"""Print tables of committed results as Markdown.

python -m benchmarks.table                                  list the tables
python -m benchmarks.table training-ratios                  print one table
python -m benchmarks.table benchmarks/results/cpu.json      print all tables of a result of `benchmarks.run`
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import recipe_tables, run_tables, system_tables
from benchmarks.markdown import heading, row, short_commit, wrap

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the documentation.

    Args:
        build: Function that yields the lines of the table from the contents of the files.
        files: Result files in benchmarks/results, without `.json`.
    """

    build: Callable[..., Iterator[str]]
    files: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield the lines of the table and its source."""
        results = [load_result(name) for name in self.files]
        yield from self.build(*results)
        names = ", ".join(f"`{name}.json`" for name in self.files)
        options = f"; {run_tables.describe_options(results[0])}" if "options" in results[0] else ""
        yield from ("", *wrap(f"Source: {names}{options}."))


# In the run of cpu.json, fmcli returned memory to the system after each predicted batch, unlike its commands. Start-up
# of the peers and time to accuracy were not measured in that run.
_FILES_OF_RUN = {
    "augmentation-cost": "cpu-augment",
    "prediction": "cpu-predict",
    "startup": "cpu-startup",
    "time-to-accuracy": "cpu-accuracy",
}
# Commands of results that do not contain their command.
_COMMANDS = {
    "quick": "python -m benchmarks.seeds quick --seeds 3 --threads 1",
    "record": "python -m benchmarks.seeds record --seeds 1 --threads 2",
    "families": "python -m benchmarks.families --seeds 5",
    "scale": "python -m benchmarks.scale",
    "thousand": "python -m benchmarks.thousand --repeats 5",
}


def sources() -> Iterator[str]:
    """Yield a table with the command, hardware, versions and commit of each result file."""
    yield from heading(["result file", "command", "processor", "versions", "commit"])
    files = dict.fromkeys(name for table in TABLES.values() for name in table.files)
    for name in files:
        result = load_result(name)
        if "machine" in result:
            machine = result["machine"]
            command = " ".join(result["command"]) if "command" in result else _COMMANDS[name]
            versions = {"Python": machine["python"], **machine["versions"]}
            shown = ", ".join(
                f"{key} {versions[key]}" for key in ("Python", "torch", "keras", "tensorflow") if key in versions
            )
            processor = (
                f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['cpu_bf16']) or 'no bf16 units'}"
            )
            yield row([f"`{name}.json`", f"`{command}`", processor, shown, short_commit(machine)])


def load_result(name: str) -> dict[str, Any]:
    """Return the contents of a file in benchmarks/results."""
    contents: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return contents


TABLES: dict[str, Table] = {
    **{name: Table(build, (_FILES_OF_RUN.get(name, "cpu"),)) for name, build in run_tables.TABLES.items()},
    "quick": Table(recipe_tables.seeds, ("quick",)),
    "record": Table(recipe_tables.seeds, ("record",)),
    "families": Table(recipe_tables.families, ("families",)),
    "precision": Table(recipe_tables.precision, ("precision", "precision-roy-2")),
    "folding": Table(recipe_tables.folding, ("folding",)),
    "scale": Table(recipe_tables.scale, ("scale",)),
    "thousand": Table(recipe_tables.thousand, ("thousand",)),
    "systems": Table(system_tables.systems, ("reproduce",)),
    "recalls": Table(system_tables.recalls, ("reproduce",)),
    "keras": Table(system_tables.keras, ("reports-in-keras", "reproduce")),
    "one-epoch": Table(system_tables.one_epoch, ("kernel-vote-one-epoch", "kernel-vote-fashion-one-epoch")),
    "kernel-claim": Table(system_tables.kernel_claim, ("kernel-claim",)),
    "search": Table(system_tables.search, ("ams-search",)),
}


def main(arguments: list[str]) -> None:
    """Print a table, all tables of a file, or the names of the tables."""
    match arguments:
        case ["sources"]:
            print(*sources(), sep="\n")
        case [name] if name in TABLES:
            print(*TABLES[name].lines(), sep="\n")
        case [name] if name.endswith(".json"):
            run_tables.show(json.loads(Path(name).read_text("utf-8")))
        case []:
            print(*TABLES, "sources", sep="\n")
        case _:
            raise SystemExit(f"unknown table {' '.join(arguments)!r}; expected one of: {', '.join(TABLES)}, sources")


if __name__ == "__main__":
    main(sys.argv[1:])
