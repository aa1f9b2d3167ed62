"""Keep the output that the pages show up to date.

    python docs/refresh.py                      # write all text between <!-- output of: COMMAND --> and its end again
    python docs/refresh.py docs/recipes.md      # only in one page
    python docs/refresh.py --check              # fail if such text is out of date
    python docs/refresh.py --run docs/tutorial.md --folder build/tutorial

`--run` runs the commands of one page in a working folder, as written, and replaces the output that the page shows. If
the shown output ends with a line `…`, it keeps its number of lines. Commands without shown output get none.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from pages import CUT, ROOT, Command, Region, ShownFile, documentation_pages, parse_page, regions

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}


def refresh_regions(text: str, environment: dict[str, str] = ENVIRONMENT) -> str:
    """Return a page with up-to-date generated regions."""
    for region in reversed(regions(text)):
        text = text[: region.start] + _generate(region, environment) + text[region.end :]
    return text


def _generate(region: Region, environment: dict[str, str]) -> str:
    """Run the command of a region. If the old text is a code block, the new text is one, too."""
    done = subprocess.run(
        ["bash", "-c", region.command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{region.command}: exit status {done.returncode}\n{done.stderr}")
    output = "\n".join(line.rstrip() for line in done.stdout.strip("\n").split("\n"))
    old = region.text.strip("\n").split("\n")
    if old[0].startswith("```"):
        output = f"{old[0]}\n{output}\n{old[-1]}"
    return f"\n{output}\n\n"


def run_page(page: Path, folder: Path) -> None:
    """Run the commands of a page in a folder, and replace the outputs that the page shows.

    Raises:
        SystemExit: A command has an unexpected exit status.
    """
    lines = page.read_text("utf-8").split("\n")
    outputs: list[tuple[Command, list[str]]] = []
    try:
        for step in parse_page("\n".join(lines)):
            if isinstance(step, ShownFile):
                write_file(step, folder)
            else:
                outputs.append((step, _run_command(step, page, folder)))
    finally:  # also after a failure, so that nothing is computed twice
        for command, output in reversed(outputs):
            if command.shown:
                start = command.output_line - 1
                lines[start : start + len(command.shown)] = cut_like(command.shown, output)
        page.write_text("\n".join(lines), "utf-8")


def write_file(file: ShownFile, folder: Path) -> None:
    """Write a file that a page shows into the working folder."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(file.content, "utf-8")


def _run_command(command: Command, page: Path, folder: Path) -> list[str]:
    started = time.monotonic()
    print(f"{page.name}:{command.line}: {command.text}", flush=True)
    status, output = run_shell(command.text, folder, ENVIRONMENT)
    print(f"    {time.monotonic() - started:.1f} s", flush=True)
    if status != command.status:
        raise SystemExit(f"exit status {status}, expected {command.status}\n{output}")
    return [line.rstrip() for line in output.rstrip("\n").split("\n")]


def run_shell(command: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command in bash. Return its exit status, and its standard output and error together."""
    # head closes its pipe early; with pipefail, this would count as a failure
    options = [] if "head" in command else ["-o", "pipefail"]
    done = subprocess.run(
        ["bash", *options, "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def cut_like(shown: tuple[str, ...], output: list[str]) -> list[str]:
    """Return the output with the length of the output shown so far, if that ends with a line `…`."""
    if shown[-1].strip() == CUT and len(output) >= len(shown):
        return [*output[: len(shown) - 1], CUT]
    return output


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: README.md and docs/*.md")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if generated text is out of date")
    parser.add_argument("--run", action="store_true", help="run the commands of the page")
    parser.add_argument("--folder", type=Path, help="working folder for --run; created if missing")
    trained = ROOT / "checkpoints" / "quick"
    parser.add_argument("--trained", type=Path, default=trained, help="trained run of quick to copy for --run")
    options = parser.parse_args()
    if options.run:
        if len(options.pages) != 1 or options.folder is None:
            parser.error("--run needs one PAGE and --folder DIR")
        from working_folder import prepare_folder

        page = options.pages[0]
        prepare_folder(options.folder, None if page.stem == "tutorial" else options.trained)
        run_page(page, options.folder)
        return
    old = []
    for page in options.pages or documentation_pages():
        text = page.read_text("utf-8")
        new = refresh_regions(text)
        if new != text:
            old.append(str(page))
            if not options.check:
                page.write_text(new, "utf-8")
    if options.check and old:
        sys.exit(f"out of date: {', '.join(old)}\nrun: python docs/refresh.py {' '.join(old)}")


if __name__ == "__main__":
    main()
