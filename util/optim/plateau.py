"""How often a score has stopped getting better: the state of the learning rate's schedule `plateau`."""


class Plateau:
    """Tells a reduction each time that the score has not been better for more than `patience` epochs.

    The rule of PyTorch's ReduceLROnPlateau with a threshold of 0: better is anything larger than the best so far, and
    the count begins anew with each reduction. Epochs of the warm-up are not looked at.

    Args:
        patience: epochs without a better score that are waited for; warmup_epochs: of the schedule.
    """

    def __init__(self, patience, warmup_epochs=0):
        if patience < 0:
            raise ValueError(f"--patience_epochs {patience}: expected 0 or more")
        self.patience, self.warmup_epochs = patience, warmup_epochs
        self.best = None        # score
        self.since = None       # epoch of the best score, or of the last reduction if that is later
        self.reductions = 0

    def observe(self, epoch, score):
        """Take the score after `epoch`, the larger the better; whether it is time for another reduction."""
        if epoch < self.warmup_epochs:
            return False
        if self.best is None or score > self.best:
            self.best, self.since = score, epoch
        elif epoch - self.since > self.patience:
            self.since = epoch
            self.reductions += 1
            return True
        return False

    def state(self):
        """What `restore` continues from, as plain values."""
        return {"best": self.best, "since": self.since, "reductions": self.reductions}

    def restore(self, state):
        self.best, self.since, self.reductions = state["best"], state["since"], state["reductions"]
