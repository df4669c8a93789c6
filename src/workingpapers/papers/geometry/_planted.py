"""Hidden symmetries put into a ReLU perceptron on purpose, one mechanism at a time."""

import torch

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.geometry._canonical import Layers

MECHANISMS = ("inactive", "active", "coincident", "unmet", "collapsed")


def planted(layers: Layers, mechanism: str, layer: int = 0, neuron: int = 0) -> Layers:
    """Return a copy of a network with a mechanism that hides symmetries, for all inputs.

    Args:
        layers: weights and biases; hidden layers count from 0.
        mechanism: "inactive" or "active", the neuron is off or on everywhere, in the first layer as a constant, in
            later ones by the signs of its weights; "coincident", the next neuron (the one before it, for the last)
            has its hyperplane; "unmet", the next layer's first neuron bends only beside it, where it is 1;
            "collapsed", the layer's image of a plane is a line.

    Raises:
        WorkingPapersError: for another name, or where there is no such neuron, or no neighbour or next layer of it.
    """
    if mechanism not in MECHANISMS:
        raise unknown("mechanism of hidden symmetries", mechanism, MECHANISMS)
    hidden = len(layers) - 1
    if not 0 <= layer < hidden or not 0 <= neuron < len(layers[layer][1]):
        raise WorkingPapersError(f"there is no neuron {neuron} of a hidden layer {layer}")
    found = [(w.clone(), b.clone()) for w, b in layers]
    weight, bias = found[layer]
    if mechanism in ("inactive", "active"):
        sign = 1 if mechanism == "active" else -1
        weight[neuron] = sign * weight[neuron].abs() if layer else 0.0
        bias[neuron] = sign * (bias[neuron].abs() + 0.1)
    elif mechanism == "coincident":
        if len(bias) < 2:
            raise WorkingPapersError(
                f"the hidden layer {layer} has one neuron, so no neighbour can share its hyperplane"
            )
        other = neuron + 1 if neuron + 1 < len(bias) else neuron - 1
        weight[other], bias[other] = 2 * weight[neuron], 2 * bias[neuron]
    elif mechanism == "unmet":
        if layer + 1 == hidden:
            raise WorkingPapersError(
                f"the hidden layer {layer} is the last one, so no later neuron can fail to meet it"
            )
        after, shift = found[layer + 1]
        after[0], shift[0] = 0.0, -1.0
        after[0, neuron] = 1.0
    else:
        weight.copy_(torch.outer(weight[:, 0], weight[0]))
    return found
