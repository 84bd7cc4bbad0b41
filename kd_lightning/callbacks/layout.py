"""Which curves share a chart: the tab Custom Scalars of TensorBoard."""

import lightning as L

from kd_lightning.callbacks.board import boards
from kd_lightning.modules import DistillationModule

# Category, chart, tags as regular expressions. The same for all runs of a kind, so that
# TensorBoard lays the runs of a sweep over one another.
Charts = dict[str, dict[str, list[str]]]

OF_ALL: Charts = {
    "losses": {
        "training: the loss and its terms": [r"train/(?!alpha$|temperature$|weight_)"],
        "validation": [r"val/loss$"],
    },
    "accuracies": {"validation": [r"val/(teacher_)?accuracy$"]},
}
OF_STUDENTS: Charts = {
    "fidelity": {"agreement with the teacher, validation": [r"val/agreement$"]},
    "temperature and weights": {
        "temperature": [r"train/temperature$"],
        "alpha and the weights of terms": [r"train/(alpha$|weight_)"],
    },
    "gradients": {
        "norm of each weighted term": [r"gradient/(?!cosine_)"],
        "cosine between the hard term and each": [r"gradient/cosine_"],
    },
}


class ScalarLayout(L.Callback):
    """Lays out the curves of a run: losses, accuracies, fidelity, temperature, gradients."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        charts = OF_ALL | (OF_STUDENTS if isinstance(pl_module, DistillationModule) else {})
        layout = {
            category: {title: ["Multiline", tags] for title, tags in titles.items()}
            for category, titles in charts.items()
        }
        for board in boards(trainer):
            board.add_custom_scalars(layout)
