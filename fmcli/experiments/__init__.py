"""Many runs and their results: published systems and hyperparameter searches."""
