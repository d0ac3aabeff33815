"""The exponential moving average of a model's weights (EMA, as in arXiv 1703.01780)."""
import contextlib

import numpy as np
import paddle


class EMA:
    """average <- average + (1 - decay) * (weight - average), after each update, from the weights that a run starts with.

    It averages what is trained. What is not has no average of its own: frozen weights do not change, and the running
    statistics of a BatchNorm are averages already; where the average is evaluated or saved, they are the model's.
    Under --amp_level O2 it averages the float32 master weights. All processes have the same one, since they have the
    same weights.

    Args:
        decay: at least 0, less than 1. About the last 1 / (1 - decay) updates count.
    """

    def __init__(self, model, optimizer, decay):
        if not 0 <= decay < 1:
            raise ValueError(f"--ema_decay {decay}: expected at least 0 and less than 1")
        self.decay, self.optimizer = decay, optimizer
        self.parameters = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.weights = None     # what is averaged, known once training has begun
        self.set_aside = {}     # the weights of the model, while the averages are in their place

    @paddle.no_grad()
    def update(self):
        """Follow an update of the weights."""
        if self.weights is None:
            masters = self.optimizer.state_dict().get("master_weights", {})
            self.weights = {name: masters.get(p.name, p) for name, p in self.parameters.items()}
        for name, average in self.averages.items():
            # Not decay * average + (1 - decay) * weight: rounded to float32, the two factors of 0.9999 do not add up to
            # 1, and in the long run the average would be 2e-4 too small.
            average.add_((self.weights[name] - average).scale_(1 - self.decay))

    @contextlib.contextmanager
    def in_place(self):
        """Context in which the model has the averages for weights."""
        self.set_aside = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.set_value(self.averages[name].astype(p.dtype))
            yield
        finally:
            self.put_back()

    def put_back(self):
        """Give the model its own weights again, exactly, if it has the averages."""
        for name, value in self.set_aside.items():
            self.parameters[name].set_value(value)
        self.set_aside = {}

    def arrays(self):
        """{parameter name: array}."""
        return {name: average.numpy() for name, average in self.averages.items()}

    def restore(self, path, weights):
        """Continue from `weights`, {name: array}, of the checkpoint at `path`: averages, or what to start from."""
        for name, average in self.averages.items():
            value = weights.get(name)
            if not isinstance(value, np.ndarray) or list(value.shape) != average.shape:
                raise ValueError(f"{path}: its averaged weights (model_ema) do not fit its weights, as {name} shows")
            average.set_value(weights[name])
