"""What a searcher may write for the words that papers use: abbreviations, and words of one meaning.

A plain table, so that it can be read and mended; everything is stemmed when it is first looked at.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from workingpapers.catalog.text import stem, terms, words

ABBREVIATIONS = {
    "asr": "speech recognition",
    "ast": "abstract syntax tree",
    "bab": "branch bound",
    "backprop": "backpropagation",
    "batchnorm": "batch normalisation",
    "bn": "batch normalisation",
    "bo": "bayesian optimisation",
    "bp": "backpropagation",
    "bptt": "backpropagation time",
    "cka": "kernel alignment",
    "cnn": "convolutional network",
    "convnet": "convolutional network",
    "ctr": "click through rate",
    "dag": "directed acyclic graph",
    "dqn": "deep reinforcement learning",
    "ema": "moving average",
    "esn": "echo state network",
    "ffn": "feed forward",
    "fhe": "homomorphic encryption",
    "fl": "federated learning",
    "gat": "graph attention",
    "gcn": "graph convolution",
    "glu": "gated linear unit",
    "gnn": "graph neural network",
    "hpo": "hyperparameter optimisation",
    "ibp": "interval bound propagation",
    "icl": "context learning",
    "inr": "implicit neural representation",
    "kan": "kolmogorov arnold",
    "kd": "knowledge distillation",
    "kws": "keyword speech commands",
    "layernorm": "layer normalisation",
    "ln": "layer normalisation",
    "llm": "language model",
    "lm": "language model",
    "lora": "low rank adaptation",
    "lr": "learning rate",
    "mcts": "monte carlo tree search",
    "mi": "mutual information",
    "mip": "mixed integer program",
    "mlp": "perceptron",
    "moe": "mixture experts",
    "mse": "squared error",
    "mtl": "multi task learning",
    "nas": "architecture search",
    "nc": "neural collapse",
    "nerf": "radiance field",
    "nlp": "natural language",
    "nmf": "nonnegative matrix factorisation",
    "ntk": "neural tangent kernel",
    "ode": "differential equation",
    "ood": "distribution outlier",
    "pde": "partial differential equation",
    "peft": "parameter efficient finetuning",
    "plc": "packet loss concealment",
    "ppr": "personalised pagerank",
    "qat": "quantisation aware training",
    "resnet": "residual network",
    "rl": "reinforcement learning",
    "rnn": "recurrent network",
    "rtrl": "real time recurrent learning",
    "sae": "sparse autoencoder",
    "sam": "sharpness aware minimisation",
    "sdp": "semidefinite program",
    "sdr": "sparse distributed representation",
    "sgd": "stochastic gradient descent",
    "snn": "spiking network",
    "ssl": "self supervised",
    "ssm": "state space model",
    "tsp": "travelling salesman",
    "tta": "test time adaptation",
    "uat": "universal approximation",
    "vad": "voice activity detection",
    "vit": "vision transformer",
    "vqa": "visual question answering",
    "wd": "weight decay",
}

# Each line: words that mean the same to someone who searches.
SAME_MEANING = [
    "fast quick speed accelerate latency rapid",
    "cheap efficient inexpensive affordable",
    "small tiny compact lightweight",
    "compress shrink",
    "big large huge",
    "forget forgetting catastrophic",
    "shortcut skip residual",
    "picture image photo photograph",
    "voice speech spoken speak",
    "sound audio",
    "upscale superresolution enlarge",
    "bits bitwidth quantise precision",
    "prune remove delete drop",
    "explain interpret justify understand",
    "steer control",
    "attack adversarial",
    "noise noisy corrupted",
    "predict forecast",
    "doctor medical clinical hospital patient",
    "pathology histopathology tissue slide",
    "click ad advert advertisement",
    "worm elegans nematode",
    "brain cortex cortical neuroscience",
    "encrypted private privacy secure cryptographic",
    "verify certify guarantee formal prove",
    "deep depth",
    "wide width narrow",
    "flat flatness sharpness",
    "dead dying dormant inactive silent",
    "nonlinearity activation",
    "merge fold fuse reparameterise",
    "freeze frozen fixed",
    "teacher distil",
    "label annotation annotated",
    "unstable diverge explode instability",
    "weather meteorological climate",
    "finetune finetuning tuning",
    "judge evaluator grade",
    "math maths mathematics arithmetic",
    "code program programming",
    "database sql relational table tabular",
    "oversmoothing oversmooth",
    "outlier anomaly ood",
    "minority subgroup fairness",
]


@lru_cache(maxsize=1)
def _expansions() -> Mapping[str, tuple[str, ...]]:
    return {stem(short): tuple(words(full)) for short, full in ABBREVIATIONS.items()}


@lru_cache(maxsize=1)
def _phrases() -> Mapping[str, Sequence[tuple[list[str], str]]]:
    """The stems of each abbreviation's words, with the abbreviation, by the first of them."""
    found: dict[str, list[tuple[list[str], str]]] = {}
    for short, full in ABBREVIATIONS.items():
        found.setdefault(terms(full)[0], []).append((terms(full), short))
    return found


@lru_cache(maxsize=1)
def _meanings() -> Mapping[str, tuple[str, ...]]:
    return {stem(word): tuple(line.split()) for line in SAME_MEANING for word in line.split()}


def spelled_out(query: list[str]) -> list[str]:
    """Return the words that abbreviations among the terms `query` stand for, and abbreviations of its phrases."""
    found = [word for term in query for word in _expansions().get(term, ())]
    for at, term in enumerate(query):
        for phrase, short in _phrases().get(term, ()):
            if query[at : at + len(phrase)] == phrase:
                found.append(short)
    return found


def alike(query: Sequence[str]) -> list[str]:
    """Return words of the same meaning as some of the terms `query`."""
    return [word for term in query for word in _meanings().get(term, ())]
