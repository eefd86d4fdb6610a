"""Published accuracy of models with token merging, which was added without training them again.

Values only: Bolya et al., arXiv 2210.09461, measured by the authors with the SWAG weights on a
V100.
"""

from typing import NamedTuple


class MergedAccuracy(NamedTuple):
    """What merging costs and gains.

    Attributes:
        merge_tokens: number of tokens that each block merges.
        top1, merged_top1: top-1 accuracy on ImageNet-1k in percent, without and with merging.
        rate, merged_rate: images per second, likewise.
    """

    merge_tokens: int
    top1: float
    merged_top1: float
    rate: float
    merged_rate: float

    @property
    def speedup(self) -> float:
        """Ratio of the rates, as published."""
        return self.merged_rate / self.rate

    def describe(self) -> str:
        """Return it in words, for `swag-models info`."""
        return (
            f"top-1 {self.top1:.2f}% -> {self.merged_top1:.2f}% at {self.speedup:.2f}x the images "
            f"per second with --merge-tokens {self.merge_tokens} (arXiv 2210.09461)"
        )


MERGED_ACCURACY = {
    "vit_b16_in1k": MergedAccuracy(45, 85.30, 84.59, 85.7, 167.7),
    "vit_l16_in1k": MergedAccuracy(40, 88.06, 87.80, 12.8, 26.3),
    "vit_h14_in1k": MergedAccuracy(40, 88.55, 88.25, 4.7, 9.8),
}
