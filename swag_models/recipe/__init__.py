"""How such weights are made: from raw posts and hashtags to a vocabulary, labels and training shards. Needs the extra [recipe].

scenes    a small generated world of pictures and hashtags, to try the rest on
curate    posts -> vocabulary.parquet, labels.parquet (classes and repeat factor of each image), manifest.json, report.md
pack      images and labels -> WebDataset shards
data      shards -> a stream of samples, the same for a seed and epoch wherever it is read
"""
