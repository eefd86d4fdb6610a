"""Find the images nearest to a query image in a file that `swag-models embed` wrote.

swag-models embed examples/scenes --model regnety_nano_hashtags -o scenes.parquet
python examples/nearest.py scenes.parquet examples/scenes/chair.jpg [model]
"""

import sys

import torch.nn.functional as F

from swag_models.inference import Embedder
from swag_models.inference.embeddings_file import read_embeddings

NUMBER = 5

file, query, *model = sys.argv[1:]
bank = read_embeddings(file)  # vectors (N, D), memory-mapped if the file is .npy
query_embedding = Embedder(*model or ["regnety_nano_hashtags"])(query)
if query_embedding.skipped:
    sys.exit(query_embedding.skipped[0].reason)
similarities = F.normalize(bank.vectors) @ F.normalize(query_embedding.vectors)[0]  # (N,), cosines
best = similarities.topk(min(NUMBER, len(bank.names)))
for value, index in zip(best.values.tolist(), best.indices.tolist()):
    print(f"{value:.4f}  {bank.names[index]}")
