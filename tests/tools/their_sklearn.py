"""A pytest plugin: scikit-learn's own tests find thalweg.sklearn in the place of its classes."""

from sklearn import neural_network
from sklearn.neural_network import _stochastic_optimizers

import thalweg.sklearn as ours

neural_network.MLPClassifier = ours.MLPClassifier
neural_network.MLPRegressor = ours.MLPRegressor
_stochastic_optimizers.SGDOptimizer = ours.SGDOptimizer
