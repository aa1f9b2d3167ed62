"""Tables, progress, figures, JSON and CSV. Only this package imports rich and matplotlib."""
