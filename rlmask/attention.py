"""tmp"""
import torch
from torch import Tensor, nn
from rlmask.layers import head

class MultiHeadSelfAttention(nn.Module):
    """tmp"""
    def __init__(self, width, num_heads, generator):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = head(width, 3 * width, 1.0, generator)
        self.out = head(width, width, 1.0, generator)

    def forward(self, x, mask):
        B, E, H = x.shape
        q, k, v = self.qkv(x).view(B, E, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * (q.shape[-1] ** -0.5)) @ k.mT
        scores = scores.masked_fill(~mask[:, None, None, :], -1e30)
        o = scores.softmax(-1) @ v
        return self.out(o.transpose(1, 2).reshape(B, E, H))
