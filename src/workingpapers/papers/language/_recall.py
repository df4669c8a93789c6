"""Recall of facts from a long context, for decoders of transformers.

A context holds, among noise, facts in blocks: of each key its first, second and third value, each fact one token.
Behind it, "key, slot?" tokens ask; after each comes the value.
"""

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.papers.language._decode_policies import Policy
from workingpapers.papers.language._policy_attention import hugging_face, policies, with_policy
from workingpapers.tasks import Problem

SLOTS, NOISE = 3, 8


class Recall(Problem):
    """Sequences (B, context + 2 * SLOTS * asked) of token ids; the loss is that of the values asked for.

    Args:
        keys: how many keys, all of which stand in each context.
        values: how many values there are.
        context: tokens of the context.
        asked: keys that are asked for, each with all its slots.
        epoch: batches in an epoch.
    """

    metrics = ("loss",)

    def __init__(self, keys: int, values: int, context: int, asked: int, epoch: int = 100) -> None:
        self.keys, self.values, self.context, self.asked, self.epoch = keys, values, context, asked, epoch

    @property
    def vocabulary(self) -> int:
        """How many tokens there are: facts, questions, values and noise."""
        return self.keys * SLOTS * (self.values + 1) + self.values + NOISE

    def sequences(self, count: int, generator: torch.Generator) -> Tensor:
        """Return token ids."""
        k, v = self.keys, self.values
        questions, answers = k * SLOTS * v, k * SLOTS * (v + 1)
        facts = torch.randint(v, (count, k, SLOTS), generator=generator)
        ids = (torch.arange(k)[:, None] * SLOTS + torch.arange(SLOTS)) * v + facts
        room = self.context // SLOTS
        noise = torch.randint(NOISE, (count, self.context), generator=generator) + answers + v
        order = torch.rand(count, room, generator=generator).argsort(1)[:, :k]  # the places of the blocks
        at = order[..., None] * SLOTS + torch.arange(SLOTS)
        context = noise.scatter(1, at.flatten(1), ids.flatten(1))
        chosen = torch.rand(count, k, generator=generator).argsort(1)[:, : self.asked]
        ask = questions + chosen[..., None] * SLOTS + torch.arange(SLOTS)
        say = answers + facts.gather(1, chosen[..., None].expand(-1, -1, SLOTS))
        return torch.cat([context, torch.stack([ask, say], -1).flatten(1)], 1)

    def to(self, device: torch.device) -> Self:
        """Return the problem; sequences are made where they are needed."""
        return self

    def steps_per_epoch(self, batch: int) -> int:
        """Return the batches of an epoch."""
        return self.epoch

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Give fresh sequences."""
        for _ in range(self.epoch):
            yield self.sequences(batch, generator)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Return the cross-entropy of the values asked for."""
        logits = model(input_ids=batch, use_cache=False).logits[:, self.context : -1 : 2]
        return F.cross_entropy(logits.flatten(0, 1), batch[:, self.context + 1 :: 2].flatten())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on other sequences."""
        with torch.no_grad():
            return {"loss": float(self.loss(model, self.sequences(64, torch.Generator().manual_seed(10**6))))}


def recall_model(vocabulary: int, dim: int, layers: int, length: int) -> Any:
    """Return Llama in small: 4 query heads and 2 key-value heads, rotary positions."""
    hf = hugging_face()
    config = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
    )
    return hf.LlamaForCausalLM(config)


@torch.no_grad()
def recall_accuracy(
    model: nn.Module, policy: Policy, problem: Recall, count: int, seed: int
) -> dict[str, float]:
    """Ask `count` contexts for one key each; return the accuracy of the values decoded and the mass captured.

    The context and the first question are the prompt; what comes then is decoded token by token, the values given
    as they should be.  The first value, which full attention finds, does not count.
    """
    decoder: Any = with_policy(model, policy).eval()
    single = Recall(problem.keys, problem.values, problem.context, 1)
    tokens = single.sequences(count, torch.Generator().manual_seed(10**7 + seed))
    prompt, right = single.context + 1, []
    for own in policies(decoder):
        own.watch = True
    out = decoder(input_ids=tokens[:, :prompt], use_cache=True)
    for t in range(prompt, tokens.shape[1] - 1):
        out = decoder(input_ids=tokens[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        if (t - single.context) % 2 == 0:
            right.append(out.logits[:, -1].argmax(-1) == tokens[:, t + 1])
    mass = [m for own in policies(decoder) for m in own.mass]
    return {"accuracy": float(torch.stack(right).double().mean()), "mass": sum(mass) / len(mass)}
