"""The pictures most like another one, in a file that `swag-models embed` wrote with the same model.

swag-models embed examples/scenes --model regnety_nano_hashtags -o scenes.parquet
python examples/nearest.py scenes.parquet examples/scenes/chair.jpg [model]
"""

import sys

import torch.nn.functional as F

from swag_models.inference.embeddings_file import read_embeddings
from swag_models.inference.predict import Embedder

NUMBER = 5

file, query, *model = sys.argv[1:]
known = read_embeddings(file)  # vectors (N, D), mapped if the file is .npy
asked = Embedder(*model or ["regnety_nano_hashtags"])(query)
if asked.skipped:
    sys.exit(asked.skipped[0].reason)
similarity = F.normalize(known.vectors) @ F.normalize(asked.vectors)[0]  # (N,), cosines
best = similarity.topk(min(NUMBER, len(known.names)))
for value, index in zip(best.values.tolist(), best.indices.tolist()):
    print(f"{value:.4f}  {known.names[index]}")
