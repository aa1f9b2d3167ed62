"""Open the members that the user gives by their paths, and predict with them.

- `pool`: find and load members, and choose their voting rule
- `stored`: members that have stored predictions but no network
- `predict`: predictions of all members on a split
- `inference`: predictions of networks on a split or on image files
- `validation`: predictions on validation images, for fitting rules and selecting members
- `compose`: create ensembles by fitting a rule or selecting members
- `soup`: average the weights of several checkpoints
"""
