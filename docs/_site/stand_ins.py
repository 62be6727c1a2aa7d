"""Classes in the place of torch's: a site shows the adapter where torch is not installed, too."""

import sys
from types import ModuleType


class Optimizer:
    def step(self, closure=None):
        """torch's."""

    @staticmethod
    def profile_hook_step(step):
        return step


def module(name, **content):
    sys.modules[name] = found = ModuleType(name)
    vars(found).update(content)
    return found


def torch():
    """What the adapter asks of torch when it is imported."""
    base = module("torch.optim.optimizer", Optimizer=Optimizer)
    sgd = module("torch.optim.sgd", SGD=type("SGD", (Optimizer,), {}))
    adagrad = module("torch.optim.adagrad", Adagrad=type("Adagrad", (Optimizer,), {}))
    optim = module("torch.optim", optimizer=base, sgd=sgd, adagrad=adagrad, __path__=[])
    module("torch", optim=optim, __path__=[])
