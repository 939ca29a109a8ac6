"""Time of each augmentation for an image, on one core.

    make bench-augmentations

The augmentations take turns on the same random images; times are medians over the rounds.
"""

import json
import time
from statistics import median

import torch

from kdtune.data.transforms import AUGMENTATIONS, augment_images

SIZES = (32, 64, 224)
NUM_IMAGES, ROUNDS = 64, 7


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    torch.set_num_threads(1)
    results: dict[str, dict[int, float]] = {name: {} for name in AUGMENTATIONS}
    for size in SIZES:
        shape = NUM_IMAGES, 3, size, size
        images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
        pixels, seconds = images.to(torch.uint8), {name: list[float]() for name in AUGMENTATIONS}
        for _ in range(ROUNDS):
            for name in AUGMENTATIONS:
                started_at = time.perf_counter()
                augment_images(pixels, range(NUM_IMAGES), name)
                seconds[name].append(time.perf_counter() - started_at)
        for name in AUGMENTATIONS:
            results[name][size] = 1000 * median(seconds[name]) / NUM_IMAGES
    print(f"| ms per image | {' | '.join(f'{size} px' for size in SIZES)} |")
    print("|---" * (len(SIZES) + 1) + "|")
    for name, by_size in results.items():
        print(f"| `{name}` | {' | '.join(f'{ms:.2f}' for ms in by_size.values())} |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
