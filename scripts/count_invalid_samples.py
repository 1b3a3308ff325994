"""Draw ten million actions under hard masks and logits, in three dtypes; count the invalid ones.

    python scripts/count_invalid_samples.py

Rows have 1 to 64 actions, of which few, many or one are valid; logits are normal, constant, ±1e30
(as far as the dtype goes), or put the highest scores on the invalid actions. A third of the draws
are the smallest and largest numbers that a uniform generator can give.
"""

import argparse

import torch

from rlmask.ops import masked_epsilon_greedy, masked_inverse_cdf, masked_sample

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def hard_logits(mask: torch.Tensor, kind: int, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(mask.shape, generator=generator)
    if kind == 0:
        return normal
    if kind == 1:
        return torch.zeros(mask.shape)
    if kind == 2:
        return normal.sign() * 1e30
    return torch.where(mask, normal - 1e4, normal + 1e4)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count invalid actions among many draws.")
    parser.add_argument("--draws", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(arguments.seed)
    rows, drawn, invalid, round_ = 8192, 0, 0, 0
    while drawn < arguments.draws:
        actions = int(torch.randint(1, 65, (1,), generator=generator))
        density = (0.05, 0.5, 0.95)[round_ % 3]
        mask = torch.rand((rows, actions), generator=generator) < density
        one = torch.randint(actions, (rows, 1), generator=generator)
        mask.scatter_(1, one, True)
        dtype = DTYPES[round_ % len(DTYPES)]
        limit = torch.finfo(dtype).max
        logits = hard_logits(mask, round_ % 4, generator).clamp(-limit, limit).to(dtype)
        edge = torch.tensor([0.0, 1 - 2**-24])[torch.randint(2, (rows,), generator=generator)]
        for action in (
            masked_sample(logits, mask, generator)[0],
            masked_inverse_cdf(logits, mask, edge)[0],
            masked_epsilon_greedy(logits, mask, 0.5, generator),
        ):
            invalid += int((~mask.gather(1, action.unsqueeze(1))).sum())
            drawn += rows
        round_ += 1
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    print(f"{invalid} invalid actions in {drawn:,} draws ({names})")
    raise SystemExit(int(invalid > 0))


if __name__ == "__main__":
    main()
