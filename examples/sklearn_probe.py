"""How much a model's features know: a linear classifier of scikit-learn's, and its nearest neighbours, on embeddings.

    python examples/sklearn_probe.py [model]

The pictures are scikit-learn's handwritten digits; put your own arrays, or lists of paths, in their place.
"""

import sys

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from swag_models.inference import Embedder

digits = load_digits()
pictures = list((digits.images * 255 / 16).round().astype("uint8"))  # arrays (8, 8) of grey
split = train_test_split(pictures, digits.target, test_size=0.25, random_state=0, stratify=digits.target)
train_pictures, test_pictures, train_digits, test_digits = split

embedder = Embedder(*sys.argv[1:] or ["vit_nano_digits"], fast=True)
train, test = (embedder(each).vectors.numpy() for each in (train_pictures, test_pictures))  # (N, D)
classifiers = {
    "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "nearest": KNeighborsClassifier(n_neighbors=5, metric="cosine"),
}
for name, classifier in classifiers.items():
    accuracy = classifier.fit(train, train_digits).score(test, test_digits)
    print(f"{name} {accuracy:.2%} of {len(test)} held-out pictures from {train.shape[1]} features")
