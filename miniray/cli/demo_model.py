"""The demo's model: a small GPT over bytes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniray.cli.demo_settings import RECENT, VOCABULARY, Settings


class GPT(nn.Module):
    """A small decoder-only transformer over bytes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.context = settings.context
        # One table for the latest byte, one for the byte before it, and so on: a model that
        # trains for a minute has no time to find out by attention how words are spelled.
        self.recent = nn.Embedding(RECENT * VOCABULARY, width)
        self.position = nn.Embedding(settings.context, width)
        self.blocks = nn.ModuleList(Block(width, settings.heads) for _ in range(settings.blocks))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the next byte's logits: int64 (batch, length) -> (batch, length, 256)."""
        length = tokens.shape[1]
        x = self.position.weight[:length]
        for back in range(RECENT):
            shifted = F.pad(tokens, (back, 0))[:, :length]
            x = x + self.recent(shifted + back * VOCABULARY)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Block(nn.Module):
    """Attention to earlier positions, then a two-layer network at each position by itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.network_norm = nn.RMSNorm(width)
        self.network_in = nn.Linear(width, 4 * width, bias=False)
        self.network_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        batch, length, width = x.shape
        joint = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = joint.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, -1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        y: Tensor = x + self.network_out(F.gelu(self.network_in(self.network_norm(x))))
        return y


def make_model(settings: Settings) -> GPT:
    """Return the untrained model; the same seed gives the same numbers on every rank."""
    torch.manual_seed(settings.seed)
    return GPT(settings)
