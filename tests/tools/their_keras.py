"""A pytest plugin: Keras' own tests find thalweg.keras in the place of its optimizers."""

import keras
from keras.src import optimizers
from keras.src.optimizers import adagrad, sgd

import thalweg.keras as ours

for module in (keras.optimizers, optimizers, sgd):
    module.SGD = ours.SGD
for module in (keras.optimizers, optimizers, adagrad):
    module.Adagrad = ours.Adagrad
optimizers.ALL_OBJECTS_DICT.update(sgd=ours.SGD, adagrad=ours.Adagrad)
