"""Draw matplotlib figures without matplotlib's global state, and write them with `files.save_figure`."""
