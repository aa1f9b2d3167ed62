"""The commands of `fmcli ensemble`."""

from fmcli.cli.ensemble import compare, evaluate, fit, pack, select, soup, unpack
from fmcli.cli.options import command_group

app = command_group("Combine trained members into a voting ensemble.")

app.command("evaluate", short_help="Score a vote and each of its members.")(evaluate.evaluate)
app.command("compare", short_help="Compare ensembles, with significance tests.")(compare.compare)
app.command("fit", short_help="Fit a rule; write an ensemble file.")(fit.fit)
app.command("select", short_help="Select members; write an ensemble file.")(select.select)
app.command("pack", short_help="Write an ensemble to one file.")(pack.pack)
app.command("unpack", short_help="Extract the members of a pack.")(unpack.unpack)
app.command("soup", short_help="Average members' weights into one member.")(soup.soup)
