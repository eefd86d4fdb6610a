"""The training recipe: from posts with hashtags to a published model. Needs the extra [recipe].

Packages, in the order of the work:
  curation     posts with hashtags -> vocabulary.parquet and labels.parquet
  data         images and labels -> shards, data sets and data loaders
  training     data -> a model: losses, optimizer, checkpoints, distributed training
  evaluation   a model -> accuracy, probes, zero-shot transfer, bias, and a report of all of it

Modules that they share:
  config       a training run as frozen dataclasses
  presets      training runs with names; each number with its source
  hashtags     find hashtags in captions, bring them to one spelling, match them with WordNet
  wordnet      the nouns of WordNet
  plotting     PNG files by matplotlib
  worker_pool  worker processes and the signals of schedulers
"""
