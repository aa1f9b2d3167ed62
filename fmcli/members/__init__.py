"""Open the members that the user gives by their paths, predict with them, and let them vote.

- `member`: the interface of all members
- `network`, `stored`: members with a network, and members with stored predictions
- `opening`: load the members at a path
- `pool`: members with unique names that can vote together
- `predict`: predictions of all members on a split
- `inference`: networks that predict the same images together
- `validation`: predictions on validation images, for fitting rules and selecting members
- `vote`: fit a voting rule and combine predictions
- `compose`: create ensembles by fitting a rule or selecting members
- `saving`: write predictions to files
- `soup`: average the weights of several checkpoints
"""
