"""Lightning's callbacks that only watch a run, marked as such.

``shapes_result`` says of a callback whether a run without it could end with other weights or
figures. Callbacks for which it is False are left out of a teacher's key and of the settings in
``run.json``; a callback that does not say is taken to shape the result.
"""

from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar


class LastCheckpoint(ModelCheckpoint):
    """Saves the latest epoch, for resuming. Unlike the best one, no figure is taken from it."""

    shapes_result = False


class LearningRate(LearningRateMonitor):
    """Logs the learning rate."""

    shapes_result = False


class ProgressBar(TQDMProgressBar):
    """Shows progress in a terminal."""

    shapes_result = False
