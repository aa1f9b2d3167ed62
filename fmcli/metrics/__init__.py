"""Metrics: functions of arrays that return numbers.

- `classification`: accuracy, precision, recall and F1 of predicted labels.
- `calibration`: calibration of probabilities, and temperature scaling.
- `coverage`: accuracy on the images with the highest confidence.
- `diversity`: differences between the predictions of ensemble members.
- `comparison`: confidence intervals and significance tests.
- `arrays`: array types.
"""
